"""Put the best members of several trainings into one ensemble.

    python tests/benchmarks/best_members.py COUNT MODEL [MODEL ...] OUTPUT

In a short training with the Gaussian likelihood a network now and then gives up one
label: its variance grows, and with it the gradient fades (for RDN one in three lost
log g). The validation loss of a member's last epoch tells. The models are of the same
settings but for the seed, and with that of other validation spectra, on the average of
which the losses are compared; all else is the first model's. Errors have to be
calibrated anew.
"""

import sys
from dataclasses import replace
from pathlib import Path

from stellarcli import checkpoint


def members(model: checkpoint.Model) -> list[tuple[float, dict]]:
    """Last validation loss and weights of each member."""
    last = {e["member"]: e["validation_loss"] for e in model.training["history"]}
    return [
        (last[number], model.part(name))
        for number, name in enumerate(model.members, start=1)
    ]


def main(count: str, *names: str) -> None:
    """Write the ensemble."""
    *sources, output = names
    models = [checkpoint.load(name) for name in sources]
    found = [member for model in models for member in members(model)]
    found.sort(key=lambda member: member[0])
    print("validation losses:", ", ".join(f"{loss:.3f}" for loss, _ in found))
    first, path = models[0], Path(output)
    state = {k: v for k, v in first.state.items() if not k.startswith("member")}
    for number, (_, weights) in enumerate(found[: int(count)]):
        state |= {f"member{number}.{key}": value for key, value in weights.items()}
    note = f"the {count} of {len(found)} members with the lowest validation loss"
    first.training["notes"] = [*first.training.get("notes", []), note]
    checkpoint.save(replace(first, name=path.stem, state=state), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
