"""Write the labels of the spectra that a model's split holds out, for `compare`.

    python tests/benchmarks/held_out.py model.safetensors truth.fits TABLE...

The split is made again from the settings in the model file.
"""

from __future__ import annotations

import sys

import numpy as np

from stellarcli import catalog, checkpoint, dataset
from stellarcli.settings import TrainConfig


def main(model: str, output: str, *tables: str) -> None:
    """Write identifier, S/N and type of each spectrum of the test part, once."""
    config = TrainConfig.resolve(checkpoint.load(model).training["config"])
    data = dataset.load(list(tables), config)
    test = data.rows(data.index("test"))
    columns = {
        name: np.concatenate(
            [
                table.column(name)[test.row[test.table == number]]
                for number, table in enumerate(test.tables)
            ]
        )
        for name in ("objid", "snr", "survey", "subclass")
    }
    _, first = np.unique(columns["objid"], return_index=True)
    made = [
        catalog.Column(name, "S" if values.dtype.kind == "U" else "f4")
        for name, values in columns.items()
    ]
    rows = catalog.rows(made, {name: v[first] for name, v in columns.items()})
    catalog.write(output, rows, made, overwrite=True)
    print(f"{output}: {len(rows)} stars")


if __name__ == "__main__":
    main(*sys.argv[1:])
