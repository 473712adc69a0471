"""FITS files by way of astropy, for what the minimal reader of `hdus` doesn't know."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np

from stellarcli.errors import SpectrumError, StellarError, first_line
from stellarcli.surveys.hdus import (
    LARGEST,
    UnusualFITS,
    describe_bytes,
    first_value,
    is_fits,
    missing_column,
    parse_hdus,
    read_bytes,
)

MOST_FIELDS = 999  # axes or columns, by the standard; the library makes room for all
COUNTS = re.compile(rb"(TFIELDS |NAXIS   )= *(\d{1,70})")


class LibraryHeader:
    """An astropy header behind `Header`'s interface."""

    def __init__(self, header: Any):
        self._header = header

    def __contains__(self, key: str) -> bool:
        return key in self._header

    def get(self, key: str, default: Any = None) -> Any:
        """As `Header.get`."""
        try:
            with quiet():
                value = self._header.get(key, default)
        except Exception:  # astropy raises several kinds on a card it can't parse
            return default
        if isinstance(value, str):
            return value.rstrip()
        return value if isinstance(value, bool | int | float) else default


class LibraryHDU:
    """An astropy HDU behind `HDU`'s interface."""

    def __init__(self, hdu: Any):
        from astropy.io import fits

        self._hdu = hdu
        self.header = LibraryHeader(hdu.header)
        self.name = str(self.header.get("EXTNAME", "")).strip().upper()
        table = isinstance(hdu, fits.BinTableHDU | fits.TableHDU)
        compressed = isinstance(hdu, fits.CompImageHDU)
        if table and not compressed:
            self.kind, self.shape = "table", (len(hdu.data),)
        elif hdu.data is None or not hdu.data.size:
            self.kind, self.shape = "empty", ()
        else:
            self.kind, self.shape = "image", hdu.data.shape

    @property
    def data(self) -> np.ndarray:
        """As `HDU.data`, scaled."""
        with quiet():
            return np.asarray(self._hdu.data)

    @property
    def columns(self) -> tuple[str, ...]:
        """As `HDU.columns`."""
        if self.kind != "table":
            return ()
        return tuple(name.strip().upper() for name in self._hdu.columns.names)

    def column(self, name: str) -> np.ndarray:
        """As `HDU.column`, scaled; a single variable-length row has shape (1, n)."""
        if name not in self.columns:
            raise missing_column(self, name)
        with quiet():
            values = np.asarray(self._hdu.data.field(self.columns.index(name)))
            if values.dtype == object:
                if len(values) != 1:
                    raise SpectrumError(f"column {name} has rows of different length")
                values = np.asarray(values[0])[None]
        return values.reshape(len(values), -1) if values.ndim > 2 else values

    def value(self, name: str, default: Any = None) -> Any:
        """As `HDU.value`."""
        return first_value(self, name, default)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep astropy's remarks on odd files from the user's terminal."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def library_hdus(path: str | os.PathLike) -> list[LibraryHDU]:
    """Open a FITS file with astropy, behind the interface of `open_hdus`.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    list of LibraryHDU

    Raises
    ------
    SpectrumError
        If astropy can't read it either.
    """
    return library_parse(read_bytes(path))


def library_parse(data: bytes) -> list[LibraryHDU]:
    """Give the bytes of a FITS file to astropy; as `library_hdus`."""
    from astropy.io import fits

    if not is_fits(data):
        raise SpectrumError(describe_bytes(data))
    for name, count in COUNTS.findall(data):
        if int(count) > MOST_FIELDS:
            raise SpectrumError(f"damaged FITS file: {name.decode().strip()} too large")
    with quiet():
        try:
            found = fits.open(BytesIO(data), lazy_load_hdus=False)
            for number, hdu in enumerate(found):
                _check_promise(hdu, number, len(data))
            return [LibraryHDU(hdu) for hdu in found]
        except SpectrumError:
            raise
        except Exception as error:  # damaged files raise nearly anything
            raise _damaged(error) from None


def _check_promise(hdu: Any, number: int, there: int) -> None:
    """Refuse a header that promises more than the file, or the memory, can hold."""
    size = hdu.size
    if size > there:
        raise SpectrumError(
            f"the file is truncated: HDU {number} needs {size} bytes of data, "
            f"{there} are there"
        )
    if "ZIMAGE" in hdu.header or hasattr(hdu, "compression_type"):
        pixels = math.prod(hdu.shape)
        if pixels > LARGEST // 8:
            raise SpectrumError(f"HDU {number} is an image of {pixels} pixels")


def with_fallback(data: bytes, use: Callable[[list], Any]) -> Any:
    """Call `use` with the HDUs of a file, minimal first, the library's if needed.

    Parameters
    ----------
    data : bytes
        Of a FITS file.
    use : callable
        Of a list of HDUs; called a second time where it met `UnusualFITS`.

    Returns
    -------
    object
        What `use` returns.
    """
    try:
        return use(parse_hdus(data))
    except (UnusualFITS, ArithmeticError, LookupError, TypeError, ValueError):
        # The last four: a damaged header makes any arithmetic fail. The library is
        # asked before the file is called damaged.
        hdus = library_parse(data)
    try:
        return use(hdus)
    except StellarError:
        raise
    except Exception as error:  # data are read late, so damage shows late
        raise _damaged(error) from None


def _damaged(error: Exception) -> SpectrumError:
    return SpectrumError(f"damaged FITS file ({first_line(error).rstrip('.')})")
