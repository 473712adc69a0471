"""The prepared table: spectra on one grid, ready for a network, in a FITS file.

Primary header: recipe and provenance. ``SPECTRA``: one row per spectrum with its
identifiers, `FLUX` and `IVAR` (float32 vectors), and any label columns. ``WAVELENGTH``:
the common grid (recipes that keep the native sampling have a `WAVELENGTH` column
instead, padded with NaN). Tables are mapped into memory, never read whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stellarcli.errors import StellarError, UsageError
from stellarcli.preprocess import Batch, Recipe
from stellarcli.spectrum import PixelMask

EXTENSION = "SPECTRA"
VECTORS = ("FLUX", "IVAR", "WAVELENGTH")
SCAN_ROWS = 8192  # rows touched at a time while scanning a mapped table


class PreparedTable:
    """A prepared table on disk, mapped into memory.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    recipe : Recipe
    wavelength : ndarray of float64, shape (pixel,), or None
        Vacuum Å, rest frame; None where every row has its own.
    names : list of str
        Scalar columns.

    Raises
    ------
    UsageError
        If the file is missing or no prepared table.
    """

    def __init__(self, path: str | Path):
        import fitsio

        self.path = str(path)
        try:
            with fitsio.FITS(self.path) as hdus:
                names = [hdu.get_extname() for hdu in hdus]
                if EXTENSION not in names:
                    raise UsageError(
                        f"'{path}' is no prepared table: it has no {EXTENSION} "
                        "extension. 'stellar preprocess' writes one."
                    )
                table = hdus[EXTENSION]
                header = hdus[0].read_header()
                self.recipe = Recipe.from_json(header["RECIPE"])
                self.wavelength = (
                    hdus["WAVELENGTH"].read() if "WAVELENGTH" in names else None
                )
                dtype = table.get_rec_dtype()[0].newbyteorder(">")
                offset = table.get_offsets()["data_start"]
                rows = table.get_nrows()
        except OSError as error:
            raise UsageError(
                f"can't read prepared table '{path}': {_first_line(error)}"
            ) from None
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"'{path}' has no recipe in its header ({_first_line(error)}); make it "
                "with 'stellar preprocess'."
            ) from None
        self._rows = np.memmap(
            self.path, dtype=dtype, mode="r", offset=offset, shape=(rows,)
        )
        self.names = [name for name in dtype.names if name not in VECTORS]

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self._rows)

    @property
    def pixels(self) -> int:
        """Pixels per spectrum."""
        return self._rows.dtype["FLUX"].shape[0]

    def column(self, name: str) -> np.ndarray:
        """Return one scalar column, native byte order, strings stripped.

        Raises
        ------
        UsageError
            If there is none of that name; names the nearest. Case doesn't matter.
        """
        from stellarcli.errors import unknown

        folded = {n.lower(): n for n in self.names}
        if name.lower() not in folded:
            raise unknown(f"column of '{self.path}'", name, self.names)
        key = folded[name.lower()]
        parts = [
            np.array(self._rows[key][start : start + SCAN_ROWS])
            for start in range(0, len(self), SCAN_ROWS)
        ] or [self._rows[key][:0]]
        values = np.concatenate(parts)
        if values.dtype.kind == "S":
            return np.char.strip(np.char.decode(values, "ascii"))
        return values.astype(values.dtype.newbyteorder("="))

    def rows(self, index: slice = slice(None)) -> np.ndarray:
        """Return scalar columns of some rows, native byte order, text as bytes."""
        part = self._rows[index]
        table = np.empty(
            len(part),
            dtype=[(n, part.dtype[n].newbyteorder("=")) for n in self.names],
        )
        for name in self.names:
            text = part.dtype[name].kind == "S"
            table[name] = np.char.rstrip(part[name]) if text else part[name]
        return table

    def spectra(self, index: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Read flux and ivar of some rows, float32, each (spectrum, pixel)."""
        rows = self._rows[index]
        return rows["FLUX"].astype(np.float32), rows["IVAR"].astype(np.float32)

    def batch(self, index: np.ndarray | slice) -> Batch:
        """Read some rows as a `Batch`; pixels without ivar are masked."""
        flux, ivar = self.spectra(index)
        wavelength = self.wavelength
        if wavelength is None:
            wavelength = self._rows[index]["WAVELENGTH"].astype(np.float64)
        mask = np.where(ivar > 0, 0, PixelMask.NO_IVAR).astype(np.uint8)
        segments = ((((0, flux.shape[1]),)),)
        return Batch(wavelength, flux, ivar, mask, np.zeros(len(flux)), (segments[0],))


@dataclass
class PreparedWriter:
    """Write a prepared table, batch after batch, with bounded memory.

    Used as a context manager: the file gets its name when all went well, otherwise
    nothing is left.

    Parameters
    ----------
    path : str
        ``-`` for standard output.
    recipe : Recipe
    cards : sequence of (name, value, comment)
        Provenance for the primary header.
    units : dict
        Unit per scalar column.
    """

    path: str
    recipe: Recipe
    cards: Sequence[tuple[str, Any, str]] = ()
    units: dict[str, str] | None = None

    def __enter__(self) -> PreparedWriter:
        """Open the temporary file."""
        import fitsio

        target = Path(self.path)
        if self.path == "-":
            import tempfile

            self._partial = Path(tempfile.mkstemp(prefix=".stellar-")[1])
        else:
            self._partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        self._partial.unlink(missing_ok=True)
        self._table = None
        self._wavelength: np.ndarray | None = None
        with _disk_errors(self.path):
            self._fits = fitsio.FITS(str(self._partial), "rw")
            header = [
                {"name": "RECIPE", "value": self.recipe.to_json(), "comment": ""},
                *({"name": n, "value": v, "comment": c} for n, v, c in self.cards),
            ]
            self._fits.write(None, header=header)
        return self

    def append(self, rows: np.ndarray, batch: Batch) -> None:
        """Append spectra.

        Parameters
        ----------
        rows : structured ndarray, shape (spectrum,)
            Scalar columns; the first call fixes names and widths.
        batch : Batch
        """
        pixels = batch.flux.shape[1]
        vectors = [("FLUX", "f4", (pixels,)), ("IVAR", "f4", (pixels,))]
        if not batch.common_grid:
            vectors.append(("WAVELENGTH", "f8", (pixels,)))
        table = np.zeros(len(rows), dtype=rows.dtype.descr + vectors)
        for name in rows.dtype.names:
            table[name] = rows[name]
        table["FLUX"], table["IVAR"] = batch.flux, batch.ivar
        if batch.common_grid:
            self._wavelength = batch.wavelength
        else:
            table["WAVELENGTH"] = batch.wavelength
        with _disk_errors(self.path):
            if self._table is None:
                names = table.dtype.names
                units = [(self.units or {}).get(name, "") for name in names]
                self._fits.write(table, extname=EXTENSION, units=units)
                self._table = self._fits[-1]
            else:
                self._table.append(table)

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Finish the file and give it its name, or remove it after an error."""
        try:
            if kind is None:
                with _disk_errors(self.path):
                    self._finish()
        finally:
            self._fits.close()
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._wavelength is not None:
            self._fits.write(self._wavelength, extname="WAVELENGTH")
            self._fits[-1].write_key("BUNIT", "Angstrom", "vacuum, rest frame")
        for hdu in self._fits:
            hdu.write_checksum()
        self._fits.close()
        if self.path == "-":
            with self._partial.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            self._partial.replace(self.path)


class _disk_errors:
    """Turn a full disk and its kin into one sentence."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> None:
        """Nothing to open."""

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        """Re-raise operating-system errors as `StellarError`."""
        if isinstance(error, BrokenPipeError):
            raise error
        if isinstance(error, OSError):
            raise StellarError(
                f"can't write '{self.path}': {_first_line(error)}. Is the disk full?"
            ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def is_prepared(path: str) -> bool:
    """Say whether a file is a prepared table, from its first kilobytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    return head.startswith(b"SIMPLE") and b"EXTNAME = 'SPECTRA" in head


def spool(stream: Any) -> Iterator[Path]:
    """Yield a temporary file with the content of a pipe, removed afterwards."""
    import tempfile

    with tempfile.NamedTemporaryFile(prefix=".stellar-", suffix=".tmp") as file:
        shutil.copyfileobj(stream, file)
        file.flush()
        yield Path(file.name)


def recipe_difference(given: Recipe, needed: Recipe) -> str:
    """Describe where two recipes differ, or return an empty string."""
    left = json.loads(given.to_json())["steps"]
    right = json.loads(needed.to_json())["steps"]
    if left == right:
        return ""
    pairs = zip(given.steps, needed.steps, strict=False)
    for a, b in pairs:
        if (a.name, a.parameters) != (b.name, b.parameters):
            return f"{a} instead of {b}"
    return f"{len(left)} steps instead of {len(right)}"
