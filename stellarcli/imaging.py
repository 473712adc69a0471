"""Photometric images of stars, from files: found, opened, cut out.

`Images` knows where frames are: a table with columns ``image_g``, ``image_r``, … as
'stellar fetch sdss-images' writes it, joined by identifier or position; or a directory,
whose frames are searched for those that show a star. Frames may be SDSS's
(``frame-*.fits.bz2``) or any FITS images with celestial coordinates. What is done with
their pixels is `preprocess.images`'s.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from stellarcli import catalog
from stellarcli.errors import SpectrumError, UsageError, first_line
from stellarcli.preprocess import images
from stellarcli.preprocess.images import Frame, ImageFlag
from stellarcli.surveys.hdus import header_end

ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.bz2", ".fit.gz", ".fits.fz")
NAMED = re.compile(r"frame-([a-z])-", re.IGNORECASE)
OPENED = 12  # frames kept in memory: SDSS's have 12 MB each
HEAD = 1 << 18  # bytes of a compressed file that hold its headers
FULL_CARDS = ("SATURATE", "SATLEVEL", "SATUR")  # values of saturated pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A frame of a directory and what it covers.

    Attributes
    ----------
    path : str
    band : str
    centre : tuple of float
        Unit vector.
    reach : float
        Radians from the centre to the farthest corner.
    """

    path: str
    band: str
    centre: tuple[float, float, float]
    reach: float


@dataclass(frozen=True)
class Cut:
    """Images of some stars.

    Attributes
    ----------
    pixels : ndarray of float32, shape (star, band, row, column)
        0 … 1 in each band; NaN in all bands of stars that lack one.
    flags : ndarray of int16, shape (star, band)
        `ImageFlag`.
    reasons : list of (int, str)
        Star, and what is wrong with its images.
    """

    pixels: np.ndarray
    flags: np.ndarray
    reasons: list[tuple[int, str]]


class Images:
    """Where the images of stars are.

    Parameters
    ----------
    source : str
        Directory or table.
    bands : sequence of str
        The first is the one that the others are aligned on.
    size : int
        Pixels of a cut-out's side.
    radius : float
        Of the join on the sky, arcsec.

    Raises
    ------
    UsageError
        If the source doesn't exist, has no frames, or its columns aren't those needed.
    """

    def __init__(
        self,
        source: str,
        bands: Sequence[str] = images.BANDS,
        size: int = images.SIZE,
        radius: float = 3.0,
    ):
        self.source = source
        self.bands, self.size = images.check(bands, size)
        self.radius = radius
        self._table: catalog.Table | None = None
        self._places: dict[str, list[Place]] = {}
        if os.path.isdir(source):
            self._search()
        else:
            self._read_table()
        self._frames: OrderedDict[str, Frame | str] = OrderedDict()

    def _read_table(self) -> None:
        self._table = catalog.read(self.source)
        self._columns = [self._table.find(f"image_{band}") for band in self.bands]
        missing = [
            f"image_{band}"
            for band, column in zip(self.bands, self._columns, strict=True)
            if column is None
        ]
        if len(missing) == len(self.bands):
            raise UsageError(
                f"{self._table.name} lists no images: it has no column "
                f"{', '.join(missing)}. 'stellar fetch sdss-images --table FILE' "
                "writes such a table; a directory of frames will do, too."
            )
        self._matcher = catalog.Matcher(self._table.rows, self.radius)

    def _search(self) -> None:
        troubles: list[str] = []
        for path in _below(self.source):
            try:
                place = _place(path)
            except SpectrumError as error:
                troubles.append(f"{path}: {error}")
                continue
            self._places.setdefault(place.band, []).append(place)
        for trouble in troubles:
            log.warning("%s", trouble)
        if not any(self._places.get(band) for band in self.bands):
            first = f" The first trouble: {troubles[0]}." if troubles else ""
            raise UsageError(
                f"no image of bands {', '.join(self.bands)} in '{self.source}': frames "
                f"end in {', '.join(ENDINGS)} and say their band in the card FILTER or "
                f"the name (frame-g-…).{first}"
            )

    def __call__(self, rows: np.ndarray) -> Cut:
        """Cut out images of stars.

        Parameters
        ----------
        rows : structured ndarray, shape (star,)
            With ``objid``, ``ra`` and ``dec`` where they are known.

        Returns
        -------
        Cut
        """
        count = len(rows)
        shape = (count, len(self.bands), self.size, self.size)
        pixels = np.full(shape, np.nan, dtype=np.float32)
        flags = np.full(shape[:2], int(ImageFlag.MISSING), dtype=np.int16)
        reasons: list[tuple[int, str]] = []
        paths = self._paths(rows)
        # frames that several stars share are opened once
        for star in sorted(range(count), key=lambda n: [p or "" for p in paths[n]]):
            made, flags[star], why = self._star(rows[star], paths[star])
            reasons += [(star, text) for text in why]
            if images.usable(flags[star]):
                pixels[star] = made
        return Cut(pixels, flags, sorted(reasons))

    def _star(
        self, row: np.void, paths: Sequence[str | None]
    ) -> tuple[np.ndarray, list[int], list[str]]:
        """Images of one star, a flag per band, and what is wrong with it."""
        ra, dec = float(row["ra"]), float(row["dec"])
        made = np.zeros((len(self.bands), self.size, self.size), dtype=np.float32)
        flags = [int(ImageFlag.MISSING)] * len(self.bands)
        if not (np.isfinite(ra) and np.isfinite(dec)):
            return made, flags, ["no position, hence no image"]
        why, target = [], None
        for n, (band, path) in enumerate(zip(self.bands, paths, strict=True)):
            if path is None:
                why.append(f"no image in {band}")
                continue
            frame = self._open(path)
            if isinstance(frame, str):
                flags[n] = int(ImageFlag.UNREADABLE)
                why.append(f"image in {band}: {frame}")
                continue
            if target is None:
                x, _ = images.position(frame.wcs, ra, dec)
                if np.isfinite(x):
                    target = images.target_wcs(frame.wcs, ra, dec, self.size)
            flag = ImageFlag.OUTSIDE
            if target is not None:
                image, flag = images.cut_out(frame, target, ra, dec, self.size)
                made[n] = images.scale_min_max(image)
            flags[n] = int(flag)
            if flag:
                why.append(f"image in {band}: {describe(flag)} ({frame.name})")
        return made, flags, why

    def _open(self, path: str) -> Frame | str:
        """Return a frame, or why it can't be used."""
        if path in self._frames:
            self._frames.move_to_end(path)
            return self._frames[path]
        try:
            frame: Frame | str = read(path)
        except SpectrumError as error:
            frame = str(error)
        self._frames[path] = frame
        if len(self._frames) > OPENED:
            self._frames.popitem(last=False)
        return frame

    def _paths(self, rows: np.ndarray) -> list[list[str | None]]:
        """Path of the frame of every star and band."""
        if self._table is None:
            return self._covering(rows)
        found = self._matcher(rows).index
        folder = os.path.dirname(self.source)
        paths: list[list[str | None]] = []
        for index in found.tolist():
            names = [
                str(self._table.rows[column][index]).strip()
                if column is not None and index >= 0
                else ""
                for column in self._columns
            ]
            paths.append(
                [catalog.located(name, folder) if name else None for name in names]
            )
        return paths

    def _covering(self, rows: np.ndarray) -> list[list[str | None]]:
        """Frames of the directory whose middle is nearest to each star."""
        paths: list[list[str | None]] = [[None] * len(self.bands) for _ in rows]
        known = np.flatnonzero(np.isfinite(rows["ra"]) & np.isfinite(rows["dec"]))
        stars = _unit(rows["ra"][known], rows["dec"][known])
        for n, band in enumerate(self.bands):
            places = self._places.get(band, [])
            if not places or not known.size:
                continue
            distance, index = self._tree(band).query(stars)
            for star, chord, at in zip(
                known.tolist(), distance.tolist(), index.tolist(), strict=True
            ):
                # far corners of a larger frame may be nearer to another's middle
                choices = [places[at]] if chord <= places[at].reach else []
                choices = choices or self._others(band, rows[star])
                if choices:
                    paths[star][n] = choices[0].path
        return paths

    def _others(self, band: str, row: np.void) -> list[Place]:
        """All frames of a band that may show a star, the nearest first."""
        star = _unit(np.array([row["ra"]]), np.array([row["dec"]]))[0]
        places = self._places[band]
        near = self._tree(band).query_ball_point(star, max(p.reach for p in places))
        pairs = [(np.linalg.norm(star - places[n].centre), n) for n in near]
        return [places[n] for away, n in sorted(pairs) if away <= places[n].reach]

    @lru_cache(maxsize=8)  # noqa: B019 - an Images lives as long as the run
    def _tree(self, band: str):
        from scipy.spatial import cKDTree

        return cKDTree([place.centre for place in self._places[band]])


@lru_cache(maxsize=4)
def source(name: str, bands: tuple[str, ...], size: int) -> Images:
    """Return `Images` of a directory or table, read once per process."""
    return Images(name, bands, size)


def describe(flag: ImageFlag) -> str:
    """Say what the bits of a flag mean."""
    return "; ".join(
        meaning for bit, meaning in images.IMAGE_FLAG_MEANING.items() if flag & bit
    )


def _unit(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def _below(directory: str) -> list[str]:
    return sorted(
        os.path.join(folder, name)
        for folder, _, files in os.walk(directory, followlinks=True)
        for name in files
        if name.lower().endswith(ENDINGS) and not name.startswith(".")
    )


# -------------------------------------------------------------------------------- files


def read(path: str) -> Frame:
    """Read a frame.

    Raises
    ------
    SpectrumError
        If the file can't be read, has no plane of pixels or no celestial coordinates.
    """
    from astropy.io import fits

    content = _content(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy's, about harmless cards
        try:
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                hdu = _plane(hdus, path)
                data = np.asarray(hdu.data, dtype=np.float32)
                header = hdu.header
        except SpectrumError:
            raise
        except Exception as error:  # astropy raises what it likes on damaged files
            raise SpectrumError(
                f"is no readable FITS image ({first_line(error)})"
            ) from None
    return Frame(data, _wcs(header), _full(header), os.path.basename(path))


def _content(path: str, limit: int = -1) -> bytes:
    """Bytes of a file, decompressed; at most `limit` of them."""
    openers = {".bz2": bz2.open, ".gz": gzip.open}
    opener = openers.get(Path(path).suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            return file.read(limit)
    except EOFError:
        raise SpectrumError("is cut off: its compressed data end too early") from None
    except OSError as error:
        raise SpectrumError(
            f"can't be read ({error.strerror or first_line(error)})"
        ) from None


def _plane(hdus, path: str):
    """First HDU with pixels in rows and columns."""
    for hdu in hdus:
        shape = getattr(hdu, "shape", ())
        if not getattr(hdu, "is_image", False) or not shape:
            continue
        if len(shape) == 2:
            return hdu
        raise SpectrumError(
            f"has {len(shape)} axes {shape}, as colour images have; a frame has one "
            "band's rows and columns"
        )
    raise SpectrumError("has no image")


def _wcs(header):
    """Celestial coordinates of a header, checked by using them."""
    from astropy.wcs import WCS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wcs = WCS(header, naxis=2)
            wcs.wcs.set()
            found = wcs.has_celestial and wcs.all_pix2world([[0.0, 0.0]], 0)
        except Exception as error:  # wcslib has a dozen kinds
            raise SpectrumError(
                f"has coordinates that can't be ({first_line(error)})"
            ) from None
    if found is False or not np.isfinite(found).all():
        raise SpectrumError(
            "has no celestial coordinates: CTYPE1 and CTYPE2 are "
            f"{header.get('CTYPE1', 'missing')!r} and "
            f"{header.get('CTYPE2', 'missing')!r}"
        )
    return wcs


def _full(header) -> float:
    for name in FULL_CARDS:
        value = header.get(name)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return np.inf


def _place(path: str) -> Place:
    """Say what a frame of a directory covers, from its header."""
    header = _first_header(path)
    if header.get("NAXIS") == 2:
        shape, wcs = (int(header["NAXIS2"]), int(header["NAXIS1"])), _wcs(header)
    else:  # the pixels are in an extension, or there are too many axes
        frame = read(path)
        shape, wcs = frame.data.shape, frame.wcs
    rows, columns = shape
    middle = [(columns - 1) / 2, (rows - 1) / 2]
    corners = [[0, 0], [columns, 0], [0, rows], [columns, rows]]
    sky = wcs.all_pix2world(np.array([middle, *corners], dtype=float), 0)
    if not np.isfinite(sky).all():
        raise SpectrumError("has corners that aren't on the sky")
    vectors = _unit(*sky.T)
    reach = float(np.linalg.norm(vectors[1:] - vectors[0], axis=1).max())
    return Place(path, _band(header, path), tuple(vectors[0].tolist()), reach)


def _first_header(path: str):
    """Header of a file's first HDU, without its pixels."""
    from astropy.io import fits

    head = _content(path, HEAD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if (end := header_end(head)) < 0:
                raise ValueError("no END card")
            return fits.Header.fromstring(head[:end].decode("ascii"))
        except Exception as error:  # astropy raises what it likes on damaged files
            raise SpectrumError(f"is no FITS image ({first_line(error)})") from None


def _band(header, path: str) -> str:
    """Band of a frame, from its header or its name."""
    if match := NAMED.match(os.path.basename(path)):
        return match[1].lower()
    text = str(header.get("FILTER", header.get("BAND", ""))).strip().lower()
    if not text:
        raise SpectrumError("doesn't say its band: it has no card FILTER")
    return text.removeprefix("sdss").strip(" _-'") or text
