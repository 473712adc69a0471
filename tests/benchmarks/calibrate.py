"""Calibrate a model's errors on labelled spectra that it hasn't seen.

    python tests/benchmarks/calibrate.py MODEL PREPARED OUTPUT

For training spectra whose signal-to-noise ratios aren't those of the spectra to come:
the validation part of `stellar train` has the training's. OUTPUT is the same model with
other factors on its errors; how it judges spectra otherwise stays.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stellarcli import calibration, checkpoint
from stellarcli.prepared import PreparedTable

BATCH = 250


def main(name: str, table: str, output: str) -> None:
    """Write the model anew."""
    torch.set_num_threads(1)
    model, rows = checkpoint.load(name), PreparedTable(table)
    truth = np.stack([rows.column(label.name) for label in model.labels], axis=1)
    networks, members, ivars = model.networks(), [], []
    for start in range(0, len(rows), BATCH):
        flux, ivar = rows.spectra(slice(start, start + BATCH))
        tensors = torch.from_numpy(flux), torch.from_numpy(ivar)
        with torch.no_grad():
            outputs = [network(*tensors) for network in networks]
        members.append(np.array([[v.numpy() for v in pair] for pair in outputs]))
        ivars.append(ivar)
    means, log_variances = np.concatenate(members, axis=2).transpose(1, 0, 2, 3)
    mean, variance = calibration.combine(list(means), list(log_variances))
    calibration.calibrate_errors(
        model, mean, np.sqrt(variance), truth.astype(float), np.concatenate(ivars)
    )
    note = f"errors calibrated on {len(rows)} spectra of {Path(table).name}"
    model.training["notes"] = [*model.training.get("notes", []), note]
    path = Path(output)
    checkpoint.save(replace(model, name=path.stem), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
