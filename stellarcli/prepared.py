"""The prepared table: spectra on one grid, ready for a network, in a FITS file.

Primary header: recipe and provenance. ``SPECTRA``: one row per spectrum with its
identifiers, `FLUX` and `IVAR` (float32 vectors), and any label columns. ``WAVELENGTH``:
the common grid (recipes that keep the native sampling have a `WAVELENGTH` column
instead, padded with NaN). ``IMAGES``, where there is photometry: (spectrum, band, row,
column), 0 to 1 as 16-bit integers, without value for a star without. Tables are mapped
into memory, never read whole.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stellarcli import catalog, feeding
from stellarcli.errors import UsageError, first_line
from stellarcli.feeding import Feed
from stellarcli.preprocess import Batch, Recipe, images
from stellarcli.provenance import Card
from stellarcli.spectrum import PixelMask

if TYPE_CHECKING:
    import fitsio

EXTENSION = "SPECTRA"
IMAGES = "IMAGES"
VECTORS = ("FLUX", "IVAR", "WAVELENGTH")
SCAN_ROWS = 8192  # rows touched at a time while scanning a mapped table
IMAGE_ROWS = 64  # images written at a time
PIXEL_TYPES = {16: ">i2", -32: ">f4"}  # of images, by BITPIX; this program writes 16


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
    velocities : str
        Where radial velocities are from, as `velocity.Source.card` says.
    names : list of str
        Scalar columns.

    Raises
    ------
    UsageError
        If the file is missing, damaged, compressed, folded or no prepared table.
    """

    def __init__(self, path: str | Path):
        import fitsio

        self.path = str(path)
        if not os.path.isfile(self.path):
            kind = "is a directory" if os.path.isdir(self.path) else "doesn't exist"
            raise UsageError(
                f"prepared table '{path}' {kind}; 'stellar preprocess' makes one."
                f"{catalog.nearest(self.path)}"
            )
        if is_compressed(self.path):
            raise UsageError(
                f"'{path}' is compressed, and prepared tables are mapped into memory: "
                "run 'gunzip' on it if it is one. Of spectra, 'stellar preprocess' "
                "makes one."
            )
        try:
            with catalog.literal(self.path) as plain, fitsio.FITS(plain) as hdus:
                names = [hdu.get_extname() for hdu in hdus]
                if EXTENSION not in names:
                    raise UsageError(
                        f"'{path}' is no prepared table: it has no {EXTENSION} "
                        "extension. 'stellar preprocess' writes one."
                    )
                table = hdus[EXTENSION]
                header = hdus[0].read_header()
                self.recipe = Recipe.from_json(header["RECIPE"])
                # the card of `velocity.Source.card`; older tables have none
                self.velocities = str(header.get("RVSOURCE") or "header")
                self.wavelength = (
                    hdus["WAVELENGTH"].read() if "WAVELENGTH" in names else None
                )
                dtype = table.get_rec_dtype()[0].newbyteorder(">")
                offset = table.get_offsets()["data_start"]
                rows = table.get_nrows()
                where = shape = own = None
                if IMAGES in names:
                    where = hdus[IMAGES].get_offsets()["data_start"]
                    shape = tuple(hdus[IMAGES].get_dims())
                    own = hdus[IMAGES].read_header()["BITPIX"]
        except OSError as error:
            raise UsageError(
                f"can't read prepared table '{path}': {first_line(error)}"
            ) from None
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"'{path}' has no recipe in its header ({first_line(error)}); make it "
                "with 'stellar preprocess'."
            ) from None
        if "FLUX" not in dtype.names or "IVAR" not in dtype.names:
            raise UsageError(
                f"'{path}' holds no spectra. If 'stellar fold' wrote it, 'stellar fold "
                "--unfold' turns its images into spectra again."
            )
        shapes = {dtype[name].shape for name in ("FLUX", "IVAR")}
        wavelengths = self.wavelength
        if wavelengths is None:
            wavelengths = np.zeros(0)
            if "WAVELENGTH" in dtype.names:
                wavelengths = np.zeros(dtype["WAVELENGTH"].shape)
        if shapes != {wavelengths.shape} or wavelengths.ndim != 1:
            raise UsageError(
                f"prepared table '{path}' is damaged: FLUX, IVAR and wavelengths "
                "differ in length. Copy it again, or make it anew."
            )
        if os.path.getsize(self.path) < offset + rows * dtype.itemsize:
            raise UsageError(f"prepared table '{path}' is cut off; copy it again.")
        self._rows = np.memmap(
            self.path, dtype=dtype, mode="r", offset=offset, shape=(rows,)
        )
        self.names = [name for name in dtype.names if name not in VECTORS]
        self._images = None
        if where is not None:
            if len(shape) != 4 or shape[0] != rows:
                raise UsageError(
                    f"{IMAGES} of '{path}' are {shape}, not (spectrum, band, row, "
                    f"column) of its {rows} spectra; prepare the spectra again."
                )
            if own not in PIXEL_TYPES:
                raise UsageError(
                    f"{IMAGES} of '{path}' have BITPIX {own}, not "
                    f"{' or '.join(map(str, PIXEL_TYPES))}; prepare the spectra again."
                )
            kind = np.dtype(PIXEL_TYPES[own])
            if os.path.getsize(self.path) < where + kind.itemsize * math.prod(shape):
                raise UsageError(f"prepared table '{path}' is cut off; copy it again.")
            self._images = np.memmap(
                self.path, dtype=kind, mode="r", offset=where, shape=shape
            )

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
            _decoded(self._rows[key][start : start + SCAN_ROWS])
            for start in range(0, len(self), SCAN_ROWS)
        ] or [_decoded(self._rows[key][:0])]
        values = np.concatenate(parts)
        if values.dtype.kind == "S":
            return np.char.strip(np.char.decode(values, "ascii"))
        return values

    def rows(self, index: slice = slice(None)) -> np.ndarray:
        """Return scalar columns of some rows, native byte order, text as bytes."""
        part = self._rows[index]
        table = np.empty(
            len(part),
            dtype=[(n, part.dtype[n].newbyteorder("=")) for n in self.names],
        )
        for name in self.names:
            text = part.dtype[name].kind == "S"
            table[name] = np.char.rstrip(part[name]) if text else _decoded(part[name])
        return table

    def spectra(self, index: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Read flux and ivar of some rows, float32, each (spectrum, pixel)."""
        rows = self._rows[index]
        return rows["FLUX"].astype(np.float32), rows["IVAR"].astype(np.float32)

    def feed(
        self,
        index: np.ndarray | slice,
        names: Sequence[str],
        extra: Sequence[str] = (),
    ) -> Feed:
        """Read what a network is fed of some rows.

        Parameters
        ----------
        index : ndarray of int, or slice
        names : sequence of str
            Of `feeding.INPUTS`.
        extra : sequence of str
            Columns of the input ``extra``; NaN where the table has no such column.
        """
        rows = self._rows[index]
        feed: Feed = {}
        for name in names:
            if name in ("flux", "ivar"):
                feed[name] = rows[name.upper()].astype(np.float32)
            elif name == "wavelength":
                feed[name] = self._wavelengths(rows)
            elif name == "images":
                self.check_images()
                feed[name] = images.restored(self._images[index])
            elif name == "extra":
                feed[name] = self._quantities(rows, extra)
        return feed

    def _wavelengths(self, rows: np.ndarray) -> np.ndarray:
        """Wavelengths of every row, float64, (spectrum, pixel)."""
        if self.wavelength is None:
            return rows["WAVELENGTH"].astype(np.float64)
        return np.tile(self.wavelength.astype(np.float64), (len(rows), 1))

    def _quantities(self, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Columns side by side, float32, (spectrum, quantity)."""
        found = feeding.empty("extra", (len(rows), len(names)))
        own = {name.lower(): name for name in self.names}
        for number, name in enumerate(names):
            if key := own.get(name.lower()):
                found[:, number] = feeding.numbers(_decoded(rows[key]))
        return found

    @property
    def has_images(self) -> bool:
        """Whether there are images beside the spectra."""
        return self._images is not None

    def check_images(self) -> None:
        """Refuse a table without images where a network needs them."""
        if not self.has_images:
            raise UsageError(
                f"'{self.path}' has no {IMAGES} extension, and this network sees "
                "images, too; prepare the spectra together with their images: "
                "'stellar preprocess --images DIR|TABLE --recipe spfusion'."
            )

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
    units, comments : dict
        Unit (TUNIT) and description (TCOMM) per scalar column, where there is one.
    """

    path: str
    recipe: Recipe
    cards: Sequence[tuple[str, Any, str]] = ()
    units: dict[str, str] | None = None
    comments: dict[str, str] | None = None

    def __enter__(self) -> PreparedWriter:
        """Open the temporary file."""
        self._has_table = False
        self._wavelength: np.ndarray | None = None
        self._images: IO[bytes] | None = None
        self._image_shape: tuple[int, ...] = ()
        with ExitStack() as stack:
            self._spool = stack.enter_context(ExitStack())
            self._fits = stack.enter_context(new_file(self.path))
            stack.push(self._finish)
            with writing(self.path):
                write_primary(self._fits, self.recipe, self.cards)
            self._stack = stack.pop_all()
        return self

    def append(
        self, rows: np.ndarray, batch: Batch, pixels: np.ndarray | None = None
    ) -> None:
        """Append spectra.

        Parameters
        ----------
        rows : structured ndarray, shape (spectrum,)
            Scalar columns; the first call fixes names and widths.
        batch : Batch
        pixels : ndarray of float32, shape (spectrum, band, row, column), optional
            Images beside them: in all calls, or in none.
        """
        if pixels is not None:
            self._keep(pixels)
        vectors = {"FLUX": batch.flux, "IVAR": batch.ivar}
        if batch.common_grid:
            self._wavelength = batch.wavelength
        else:
            vectors["WAVELENGTH"] = batch.wavelength
        table = catalog.with_columns(rows, vectors)
        with writing(self.path):
            if self._has_table:
                self._fits[EXTENSION].append(table)
            else:
                names = table.dtype.names
                units = [(self.units or {}).get(name, "") for name in names]
                self._fits.write(table, extname=EXTENSION, units=units)
                write_comments(self._fits[EXTENSION], self.comments or {})
                self._has_table = True

    def __exit__(self, *error: Any) -> None:
        """Finish the file and give it its name, or remove it after an error."""
        self._stack.__exit__(*error)

    def _keep(self, pixels: np.ndarray) -> None:
        """Append images to a temporary file: their HDU comes behind the last row."""
        with writing(self.path):
            if self._images is None:
                folder = tempfile.gettempdir()
                if self.path != "-":
                    folder = os.path.dirname(self.path) or "."
                self._images = self._spool.enter_context(
                    tempfile.TemporaryFile(prefix=".stellar-", dir=folder)  # noqa: SIM115
                )
            images.stored(pixels).tofile(self._images)
        self._image_shape = pixels.shape[1:]

    def _finish(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            return
        with writing(self.path):
            if self._wavelength is not None:
                write_wavelength(self._fits, self._wavelength)
            if self._images is not None:
                self._write_images(self._images)

    def _write_images(self, file: IO[bytes]) -> None:
        """Copy the images from their temporary file, some at a time."""
        rows = self._fits[EXTENSION].get_nrows()
        size = math.prod(self._image_shape)
        self._fits.create_image_hdu(
            dims=(rows, *self._image_shape), dtype="i2", extname=IMAGES
        )
        hdu = self._fits[-1]
        file.seek(0)
        for start in range(0, rows, IMAGE_ROWS):
            count = min(IMAGE_ROWS, rows - start)
            block = np.fromfile(file, dtype=np.int16, count=count * size)
            block = block.reshape(count, *self._image_shape)
            hdu.write(block, start=[start, 0, 0, 0])
        bands, _ = self.recipe.images or ((), 0)
        hdu.write_key("BSCALE", 1 / images.SCALED, "stored as integers")
        hdu.write_key("BZERO", 0.0)
        hdu.write_key("BLANK", images.NO_VALUE, "no image")
        hdu.write_key("BANDS", ",".join(bands), "each scaled to 0 ... 1")


@contextmanager
def new_file(path: str) -> Iterator[fitsio.FITS]:
    """Open a FITS file that gets its name, and checksums, when all went well.

    After an error nothing is left of it. Parts of the program that write one share
    `writing`, `write_primary` and `write_wavelength`.

    Parameters
    ----------
    path : str
        ``-`` for standard output.

    Raises
    ------
    UsageError
        If the name says that the file is compressed (it couldn't be mapped), or the
        directory is none to write to.
    StellarError
        If the disk is full, or the file can't be written for another reason.
    """
    import fitsio

    if path.lower().endswith(".gz"):
        raise UsageError(
            f"'{path}' can't be compressed, since tables of spectra are mapped into "
            "memory; name it without .gz."
        )
    if path != "-":
        catalog.check_directory(path)
    with catalog.temporary_name(path) as temporary:
        with catalog.literal(temporary) as plain:
            with catalog.explained(path, temporary):
                file = fitsio.FITS(plain, "rw", clobber=True)
            with file:
                yield file
                with catalog.explained(path, temporary):
                    for hdu in file:
                        catalog.write_checksum(hdu)
                    size = file[-1].get_offsets()["data_end"]
        with catalog.explained(path, temporary):
            # closing flushes cfitsio's buffers, and reports no error
            if (found := os.path.getsize(temporary)) != size:
                raise OSError(f"{found} of {size} bytes were written")
            catalog.deliver(temporary, path)


def writing(path: str) -> AbstractContextManager[None]:
    """Turn errors of the disk into one sentence, around every call that writes."""
    beside = os.path.join(tempfile.gettempdir(), "") if path == "-" else path
    return catalog.explained(path, beside)


def write_primary(file: fitsio.FITS, recipe: Recipe, cards: Iterable[Card]) -> None:
    """Write the primary HDU: recipe and provenance."""
    header = [{"name": "RECIPE", "value": recipe.to_json(), "comment": ""}]
    header += [{"name": n, "value": v, "comment": c} for n, v, c in cards]
    file.write(None, header=header)


def write_comments(hdu: Any, comments: dict[str, str]) -> None:
    """Write descriptions of columns into the header of their table."""
    for number, name in enumerate(hdu.get_colnames(), start=1):
        if comment := comments.get(name):
            hdu.write_key(f"TCOMM{number}", comment)


def write_wavelength(file: fitsio.FITS, wavelength: np.ndarray) -> None:
    """Write the HDU with the common grid, of any shape; float64."""
    file.write(wavelength, extname="WAVELENGTH")
    file[-1].write_key("BUNIT", "Angstrom", "vacuum, rest frame")


def _decoded(raw: np.ndarray) -> np.ndarray:
    """Values of a mapped column, native byte order.

    FITS keeps truth values as letters, and integers of the other signedness with their
    highest bit flipped (TZERO).
    """
    dtype = raw.dtype
    if dtype.kind == "b":
        return raw.view(np.uint8) == ord("T")
    values = raw.astype(dtype.newbyteorder("="))
    if dtype.kind == "u" and dtype.itemsize > 1:
        return values ^ dtype.type(1 << (8 * dtype.itemsize - 1))
    if dtype == np.int8:
        return values ^ np.int8(-128)
    return values


def is_prepared(path: str) -> bool:
    """Say whether a file is a prepared table, from its first kilobytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    return head.startswith(b"SIMPLE") and b"EXTNAME = 'SPECTRA" in head


def is_compressed(path: str) -> bool:
    """Say whether a file begins like gzip's."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError:
        return False


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
