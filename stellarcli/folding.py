"""Prepared tables as tables of images, and back bit for bit.

A folded table has the primary header and the scalar columns of the prepared one.
``IMAGES`` and ``IVAR_IMAGES`` are cubes (spectrum, row, column) in place of `FLUX` and
`IVAR`, ``WAVELENGTH`` is an image of the same shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stellarcli import catalog
from stellarcli.errors import UsageError
from stellarcli.prepared import (
    EXTENSION,
    PreparedTable,
    PreparedWriter,
    new_file,
    write_comments,
    write_primary,
    write_wavelength,
    writing,
)
from stellarcli.preprocess import Batch, Recipe, fold, unfold
from stellarcli.preprocess.fold import check_shape, shapes
from stellarcli.provenance import Card

if TYPE_CHECKING:
    import fitsio

DEFAULT_SHAPE = (64, 64)
CUBES = ("IMAGES", "IVAR_IMAGES")  # of the vectors FLUX, IVAR
BLOCK_PIXELS = 1 << 22  # read and written at a time

Shape = tuple[int, int]
# primary cards but those about the file itself; units and comments by column
Carried = tuple[list[Card], dict[str, str], dict[str, str]]

# cards that a new file gets anew
_OWN = ("SIMPLE", "BITPIX", "NAXIS", "EXTEND", "CHECKSUM", "DATASUM", "RECIPE", "FOLD")
_CFITSIO = ("FITS (Flexible Image Transport", "and Astrophysics', volume 376")


def parse_shape(text: str | None) -> Shape | None:
    """Read rows and columns as users write them, ``"64x64"``; None stays None.

    Raises
    ------
    UsageError
        If the text has another form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text, flags=re.ASCII)
    shape = (int(found[1]), int(found[2])) if found else (0, 0)
    if 0 in shape:
        raise UsageError(
            f"image shape {text!r} is not ROWSxCOLUMNS, two positive numbers such as "
            "64x64."
        )
    return shape


def choose_shape(source: str, shape: Shape | None = None) -> Shape:
    """Settle the shape of a prepared table's images.

    Parameters
    ----------
    source : str
    shape : (int, int), optional
        Rows and columns that are wanted; by default the recipe's, else `DEFAULT_SHAPE`
        where that fits, else the one nearest to a square.

    Raises
    ------
    UsageError
        As `fold_table`; names the shapes that fit.
    """
    return _foldable(source, shape)[1]


def fold_table(source: str, output: str, shape: Shape | None = None) -> int:
    """Fold the spectra of a prepared table into images.

    Parameters
    ----------
    source : str
        Prepared table.
    output : str
        FITS file, ``-`` for standard output. It appears when it is whole.
    shape : (int, int), optional
        Rows and columns; by default as `choose_shape` does.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    UsageError
        If the source is no prepared table, has no common wavelengths, or its spectra
        don't fill the shape.
    StellarError
        If the file can't be written.
    """
    table, shape = _foldable(source, shape)
    cards, units, comments = _header(source)
    shown = (f"{shape[0]}x{shape[1]}", "rows x columns of the images, S-shaped fold")
    with new_file(output) as file, writing(output):
        write_primary(file, table.recipe, [*cards, ("FOLD", *shown)])
        file.create_table_hdu(
            dtype=table.rows(slice(0, 0)).dtype,
            units=[units.get(name, "") for name in table.names],
            extname=EXTENSION,
        )
        write_comments(file[EXTENSION], comments)
        for part in _blocks(len(table), table.pixels):
            file[EXTENSION].append(table.rows(part))
        for number, name in enumerate(CUBES):
            file.create_image_hdu(dims=(len(table), *shape), dtype="f4", extname=name)
            for part in _blocks(len(table), table.pixels):
                images = fold(table.spectra(part)[number], shape)
                file[name].write(images, start=[part.start, 0, 0])
        write_wavelength(file, fold(table.wavelength, shape))
    return len(table)


def unfold_table(source: str, output: str) -> int:
    """Turn a folded table into the prepared table that it was made from.

    Parameters
    ----------
    source : str
        Folded table.
    output : str
        FITS file, ``-`` for standard output. It appears when it is whole.

    Returns
    -------
    int
        Number of spectra.

    Raises
    ------
    UsageError
        If the source is no folded table, or damaged.
    StellarError
        If the file can't be written.
    """
    with (
        open_folded(source) as table,
        PreparedWriter(output, table.recipe, *table.carried) as writer,
    ):
        wavelength = unfold(table.wavelength)
        for part in _blocks(len(table), wavelength.size):
            writer.append(table.rows(part), _batch(wavelength, *table.images(part)))
        return len(table)


@dataclass(frozen=True, eq=False)
class Image:
    """One spectrum as an image.

    Attributes
    ----------
    flux, ivar : ndarray of float32, shape (row, column)
    wavelength : ndarray of float64, shape (row, column)
        Vacuum Å, rest frame.
    row : structured scalar
        What is known of the spectrum.
    recipe : Recipe
    """

    flux: np.ndarray
    ivar: np.ndarray
    wavelength: np.ndarray
    row: np.void
    recipe: Recipe


def read_image(source: str, row: int, shape: Shape | None = None) -> Image:
    """Read one spectrum of a prepared or a folded table as an image.

    Parameters
    ----------
    source : str
    row : int
        Counted from 0.
    shape : (int, int), optional
        By default that of the folded table, or as in `fold_table`.

    Raises
    ------
    UsageError
        If there is no such row, or the spectrum doesn't fill the shape.
    """
    if not is_folded(source):
        table, shape = _foldable(source, shape)
        part = _one(row, len(table), source)
        flux, ivar = (fold(vector[0], shape) for vector in table.spectra(part))
        wavelength = fold(table.wavelength, shape)
        return Image(flux, ivar, wavelength, table.rows(part)[0], table.recipe)
    with open_folded(source) as folded:
        part = _one(row, len(folded), source)
        arrays = [cube[0] for cube in folded.images(part)] + [folded.wavelength]
        if shape is not None:
            arrays = [fold(unfold(array), shape) for array in arrays]
        return Image(*arrays, folded.rows(part)[0], folded.recipe)


def is_folded(path: str) -> bool:
    """Say whether a file is a folded table, from its primary header."""
    import fitsio

    try:
        with catalog.literal(path) as plain:
            return "FOLD" in fitsio.read_header(plain)
    except OSError:
        return False


@dataclass(frozen=True, eq=False)
class FoldedTable:
    """A folded table that is open, read in parts; see `open_folded`.

    Attributes
    ----------
    file : fitsio.FITS
    recipe : Recipe
    carried : tuple
        What another form of the table keeps, see `Carried`.
    wavelength : ndarray of float64, shape (row, column)
    """

    file: fitsio.FITS
    recipe: Recipe
    carried: Carried
    wavelength: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return self.file[CUBES[0]].get_dims()[0]

    def rows(self, part: slice) -> np.ndarray:
        """Read the scalar columns of some rows, native byte order, text as bytes."""
        rows = self.file[EXTENSION][part]
        types = [(name, _native(rows.dtype[name])) for name in rows.dtype.names]
        return rows.astype(types)

    def images(self, part: slice) -> list[np.ndarray]:
        """Read flux and ivar of some rows, float32, each (spectrum, row, column)."""
        cubes = [self.file[name][part, :, :] for name in CUBES]
        return [cube.astype(np.float32) for cube in cubes]


@contextmanager
def open_folded(path: str) -> Iterator[FoldedTable]:
    """Open a folded table.

    Raises
    ------
    UsageError
        If the file is missing, damaged, or no folded table.
    """
    import fitsio

    try:
        with catalog.literal(path) as plain, fitsio.FITS(plain) as file:
            names = {hdu.get_extname() for hdu in file}
            if not {EXTENSION, "WAVELENGTH", *CUBES} <= names:
                raise UsageError(
                    f"'{path}' is no folded table: it lacks the images. Make one from "
                    "a prepared table with 'stellar fold'."
                )
            recipe = Recipe.from_json(file[0].read_header()["RECIPE"])
            wavelength = file["WAVELENGTH"].read()
            yield FoldedTable(file, recipe, _carried(file), wavelength)
    except BrokenPipeError:
        raise  # of the output
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"can't read folded table '{path}': {reason}. Check the name, or make it "
            "again with 'stellar fold'."
        ) from None


def _foldable(source: str, shape: Shape | None) -> tuple[PreparedTable, Shape]:
    """Open a prepared table and settle the shape of its images."""
    table = PreparedTable(source)
    if table.wavelength is None:
        raise UsageError(
            f"'{source}' can't be folded: recipe '{table.recipe.name}' keeps each "
            "spectrum's own sampling, and images need common wavelengths. Prepare it "
            "with a recipe that has a 'resample' step, such as scanet."
        )
    shape = shape or table.recipe.image_shape
    if shape is None:
        fitting = shapes(table.pixels)
        keep = DEFAULT_SHAPE in fitting or not fitting
        shape = DEFAULT_SHAPE if keep else fitting[0]
    check_shape(shape, table.pixels)
    return table, shape


def _header(path: str) -> Carried:
    """Read what is carried over from a table that is known to be readable."""
    import fitsio

    with catalog.literal(path) as plain, fitsio.FITS(plain) as file:
        return _carried(file)


def _carried(file: fitsio.FITS) -> Carried:
    """Cards, units and comments of columns that another form of the table keeps."""
    cards = [
        (card["name"], card["value"], card["comment"])
        for card in file[0].read_header().records()
        if card["name"] not in _OWN
        and not str(card["value"]).strip().startswith(_CFITSIO)
    ]
    header = file[EXTENSION].read_header()
    names = file[EXTENSION].get_colnames()
    units, comments = (
        {
            name: text
            for n, name in enumerate(names, start=1)
            if (text := header.get(f"{key}{n}"))
        }
        for key in ("TUNIT", "TCOMM")
    )
    return cards, units, comments


def _blocks(rows: int, pixels: int) -> Iterator[slice]:
    step = max(1, BLOCK_PIXELS // pixels)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _batch(wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray) -> Batch:
    """Spectra of images, as `PreparedWriter` takes them; it doesn't look at masks."""
    flux, ivar = unfold(flux), unfold(ivar)
    mask = np.zeros(flux.shape, dtype=np.uint8)
    whole = ((0, wavelength.size),)
    return Batch(wavelength, flux, ivar, mask, np.zeros(len(flux)), (whole,))


def _native(dtype: np.dtype) -> np.dtype:
    """Type in memory of a column as fitsio reads it: text as bytes."""
    if dtype.kind == "U":
        return np.dtype(f"S{dtype.itemsize // 4}")
    return dtype.newbyteorder("=")


def _one(row: int, rows: int, source: str) -> slice:
    if not 0 <= row < rows:
        raise UsageError(
            f"'{source}' has no row {row}; rows are counted from 0 to {rows - 1}."
        )
    return slice(row, row + 1)
