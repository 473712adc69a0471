"""Entry point of ``stellar``."""

import atexit
import os
import sys
from contextlib import suppress

# One thread per process in NumPy's matrix products: processes are the parallelism, and
# results must not depend on the number of cores. Read once, when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> None:
    """Run the command line, and leave without taking apart what it imported."""
    status = 1
    # the first to be registered runs last, after everybody else's farewells
    atexit.register(lambda: _leave(status))
    try:
        from stellarcli.cli import app

        app(prog_name="stellar")
        status = 0
    except KeyboardInterrupt:  # while the above is imported; later the app says more
        status = 130
        sys.exit("stellar: interrupted")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _leave(status: int) -> None:
    """End the process at once: unloading torch takes 0.4 s and does nothing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a closed pipe has been dealt with
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
