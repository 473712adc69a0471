"""Entry point of ``stellar``."""

import os

# One thread per process in NumPy's matrix products: processes are the parallelism, and
# results must not depend on the number of cores. Read once, when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> None:
    """Run the command line."""
    from stellarcli.cli import app

    app(prog_name="stellar")


if __name__ == "__main__":
    main()
