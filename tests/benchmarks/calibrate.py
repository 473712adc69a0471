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


@torch.no_grad()
def judged(model: checkpoint.Model, rows: PreparedTable) -> calibration.Judged:
    """Predict all rows, in pieces."""
    networks, pieces = model.networks(), []
    truth = np.stack([rows.column(label.name) for label in model.labels], axis=1)
    for start in range(0, len(rows), BATCH):
        piece = slice(start, start + BATCH)
        flux, ivar = rows.spectra(piece)
        tensors = torch.from_numpy(flux), torch.from_numpy(ivar)
        outputs = [[v.numpy() for v in network(*tensors)] for network in networks]
        mean, variance = calibration.combine(*map(list, zip(*outputs, strict=True)))
        error = np.sqrt(variance)
        decoded = [
            (label.decode(mean[:, i]), label.decode_error(mean[:, i], error[:, i]))
            for i, label in enumerate(model.labels)
        ]
        value, error = (np.stack(c, axis=1) for c in zip(*decoded, strict=True))
        snr = calibration.signal_to_noise(ivar)
        true = truth[piece].astype(float)
        nowhere = np.full((len(snr), 3), np.nan)
        same = np.ones(len(snr), bool), np.full(len(snr), "")
        pieces.append(calibration.Judged(value, error, true, snr, nowhere, *same))
    return calibration.Judged.joined(pieces)


def main(name: str, table: str, output: str) -> None:
    """Write the model anew."""
    torch.set_num_threads(1)
    model, rows = checkpoint.load(name), PreparedTable(table)
    calibration.calibrate(model, judged(model, rows))
    note = f"errors calibrated on {len(rows)} spectra of {Path(table).name}"
    model.training["notes"] = [*model.training.get("notes", []), note]
    path = Path(output)
    checkpoint.save(replace(model, name=path.stem), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
