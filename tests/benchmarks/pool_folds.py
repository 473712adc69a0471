"""Put the test rows of a cross-validation into one catalogue, for `compare`.

    python tests/benchmarks/pool_folds.py WORK/both 3 [PART]

Takes WORK/both.foldN.split.fits, which 'stellar train --folds' wrote, and the labels of
the whole table by each of these models, WORK/both.N.fits; writes WORK/both.fits, in
which every star is predicted by the model that hadn't seen it.
"""

from __future__ import annotations

import sys

import numpy as np

from stellarcli import catalog


def main(prefix: str, folds: str, part: str = "test") -> None:
    """Write the pooled catalogue."""
    pieces = []
    for fold in range(int(folds)):
        split = catalog.read(f"{prefix}.fold{fold}.split.fits").rows
        made = catalog.read(f"{prefix}.{fold}.fits")
        own = split["objid"][split["part"].astype(str) == part]
        pieces.append(made.rows[np.isin(made.rows["objid"], own)])
    rows = np.concatenate(pieces)
    if len(np.unique(rows["objid"])) < len(rows):
        raise SystemExit("a star was tested twice: these are no folds of one split")
    columns = catalog.columns_of(rows, made.units)
    catalog.write(
        f"{prefix}.fits",
        catalog.rows(columns, {n: rows[n] for n in rows.dtype.names}),
        columns,
        overwrite=True,
    )
    print(f"{prefix}.fits: {len(rows)} stars")


if __name__ == "__main__":
    main(*sys.argv[1:])
