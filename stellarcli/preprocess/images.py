"""Images of a star in several bands: cut out, aligned, judged, scaled.

Functions of arrays and of their coordinate systems (`astropy.wcs.WCS`); `imaging` opens
the files. All bands are brought to pixels of the first one's scale and direction, with
the star in the middle of pixel (size // 2, size // 2), counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np

from stellarcli.errors import UsageError
from stellarcli.preprocess.batch import Batch

if TYPE_CHECKING:
    from astropy.wcs import WCS

BANDS, SIZE = ("g", "r", "i"), 128
MARGIN = 8  # pixels read around what a cut-out needs, for the interpolation's kernel
ALIKE = 0.1  # relative difference of pixel sizes up to which interpolation is enough
CORE = 8  # pixels from the star within which its image is judged
FLAT, PLATEAU = (
    0.97,
    5,
)  # a core with so many pixels above this share of its peak is full
BRIGHT = 50.0  # peak over noise from which a core is judged
SCALED, NO_VALUE = 32767, -32768  # what 1 and NaN are stored as


class ImageFlag(IntFlag):
    """What is wrong with a star's image in one band; 0 is nothing."""

    MISSING = 1 << 0
    UNREADABLE = 1 << 1
    OUTSIDE = 1 << 2
    BLANK = 1 << 3
    EDGE = 1 << 4
    HOLES = 1 << 5
    SATURATED = 1 << 6


IMAGE_FLAG_MEANING = {
    ImageFlag.MISSING: "no image of this band for the star",
    ImageFlag.UNREADABLE: "the image can't be read",
    ImageFlag.OUTSIDE: "the star isn't on the image",
    ImageFlag.BLANK: "the cut-out has one value everywhere",
    ImageFlag.EDGE: "part of the cut-out is beyond the image's edge",
    ImageFlag.HOLES: "pixels of the cut-out have no value",
    ImageFlag.SATURATED: "the star is saturated",
}
NOTHING = ImageFlag.MISSING | ImageFlag.UNREADABLE | ImageFlag.OUTSIDE | ImageFlag.BLANK


@dataclass(frozen=True, eq=False)
class Frame:
    """An image with its coordinates.

    Attributes
    ----------
    data : ndarray of float32, shape (row, column)
        Any unit proportional to flux; NaN without value.
    wcs : WCS
        Celestial, two axes.
    full : float
        Value from which a pixel is saturated; infinite where the file doesn't say.
    name : str
    """

    data: np.ndarray
    wcs: WCS
    full: float = np.inf
    name: str = ""


def keep_spectra(batch: Batch, *, bands: Sequence[str], size: int) -> Batch:
    """Check what images are to be; as a step of a recipe it leaves spectra alone.

    Parameters
    ----------
    batch : Batch
    bands : sequence of str
        The first is that which the others are aligned on.
    size : int
        Pixels of a side.
    """
    check(bands, size)
    return batch


def check(bands: Sequence[str], size: int) -> tuple[tuple[str, ...], int]:
    """Return bands and size, or raise `UsageError`."""
    names = tuple(str(band) for band in bands)
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"step 'images' needs bands, each once, such as [g, r, i], not {names}."
        )
    if isinstance(size, bool) or int(size) != size or not 8 <= size <= 4096:
        raise UsageError(f"images must be 8 to 4096 pixels wide, not {size}.")
    return names, int(size)


def target_wcs(reference: WCS, ra: float, dec: float, size: int = SIZE) -> WCS:
    """Coordinates of a cut-out: a frame's, with the star on the central pixel.

    Parameters
    ----------
    reference : WCS
        Of the first band's frame.
    ra, dec : float
        Degrees.
    size : int
    """
    x, y = position(reference, ra, dec)
    return shifted(reference, x - size // 2, y - size // 2)


def position(wcs: WCS, ra: float, dec: float) -> tuple[float, float]:
    """Pixel of a position in degrees, x and y counted from 0; NaN if it has none.

    A gnomonic projection puts the other half of the sky on the image, too; what comes
    back somewhere else is such a place.
    """
    with np.errstate(all="ignore"):
        x, y = wcs.all_world2pix([[ra, dec]], 0, quiet=True)[0]
        back = wcs.all_pix2world([[x, y]], 0)[0]
    away = np.abs((back - (ra, dec) + 180) % 360 - 180)
    return (float(x), float(y)) if (away < 1e-3).all() else (np.nan, np.nan)


def shifted(wcs: WCS, x: float, y: float) -> WCS:
    """Coordinates of the image that begins at a pixel."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = moved.wcs.crpix - (x, y)
    if moved.sip is not None:  # its centre moves along
        from astropy.wcs import Sip

        old = moved.sip
        moved.sip = Sip(old.a, old.b, old.ap, old.bp, moved.wcs.crpix)
    return moved


def cut_out(
    frame: Frame, target: WCS, ra: float, dec: float, size: int = SIZE
) -> tuple[np.ndarray, ImageFlag]:
    """Bring the surroundings of a star onto a cut-out's pixels.

    The sum over a star is the same before and after: values are per pixel, hence
    multiplied by the ratio of areas.

    Parameters
    ----------
    frame : Frame
    target : WCS
        Of `target_wcs`.
    ra, dec : float
        Of the star, degrees.
    size : int

    Returns
    -------
    image : ndarray of float32, shape (row, column)
        0 where there is nothing; see `flag`.
    flag : ImageFlag
    """
    nothing = np.zeros((size, size), dtype=np.float32)
    x, y = position(frame.wcs, ra, dec)
    rows, columns = frame.data.shape
    if not (-0.5 <= x < columns - 0.5 and -0.5 <= y < rows - 0.5):
        return nothing, ImageFlag.OUTSIDE
    scale = float(np.sqrt(_area(target) / _area(frame.wcs)))
    # a cut-out turned by 45 degrees reaches that far
    reach = int(np.ceil(size / np.sqrt(2) * scale)) + MARGIN
    left, low = max(0, int(x) - reach), max(0, int(y) - reach)
    piece = frame.data[low : int(y) + reach + 1, left : int(x) + reach + 1]
    flag, sky = ImageFlag(0), np.float32(0)
    known = np.isfinite(piece)
    if known.any():
        sky = np.median(piece[known])
    if not known.any() or not np.ptp(piece[known]):
        return nothing, ImageFlag.BLANK
    if not known.all():
        piece = np.where(known, piece, sky)
    core = _within(piece, int(y) - low, int(x) - left)
    if saturated(core, piece, frame.full):
        flag |= ImageFlag.SATURATED
    own = shifted(frame.wcs, left, low)
    image = _aligned(piece - sky, own, target, size, scale)
    inside = np.isfinite(image)
    if not inside.all():
        flag |= ImageFlag.EDGE
    if not known.all():
        lost = _aligned((~known).astype(np.float32), own, target, size, scale)
        if (lost[inside] > 0.5 * scale**2).any():
            flag |= ImageFlag.HOLES
    # beyond the edge there is sky
    image = np.where(inside, image + sky * scale**2, sky * scale**2)
    return image.astype(np.float32), flag


def _within(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """Pixels at most `CORE` from one of them."""
    down, along = (
        slice(max(0, middle - CORE), middle + CORE + 1) for middle in (row, column)
    )
    return image[down, along]


def _area(wcs: WCS) -> float:
    from astropy.wcs.utils import proj_plane_pixel_area

    return float(proj_plane_pixel_area(wcs))


def _aligned(
    data: np.ndarray, own: WCS, target: WCS, size: int, scale: float
) -> np.ndarray:
    """Resample with reproject; NaN beyond the data's edge.

    Interpolation is six times as fast as the adaptive method that averages (DeForest
    2004), and as good where pixels are equally large.
    """
    try:
        from reproject import reproject_adaptive, reproject_interp
    except ImportError:
        raise UsageError(
            "images are aligned with reproject, which isn't installed; "
            "run: pip install 'stellarcli[images]'"
        ) from None
    options = {"shape_out": (size, size), "roundtrip_coords": False}
    if abs(scale - 1) <= ALIKE:
        image, _ = reproject_interp((data, own), target, order="bicubic", **options)
        return image * scale**2
    image, _ = reproject_adaptive(
        (data, own), target, conserve_flux=True, boundary_mode="strict", **options
    )
    return image


def saturated(core: np.ndarray, around: np.ndarray, full: float) -> bool:
    """Say whether a star's core reaches the detector's limit, or is flat on top.

    Parameters
    ----------
    core : ndarray
        Pixels near the star.
    around : ndarray
        Pixels for the noise.
    full : float
        Value of a saturated pixel, if it is known.
    """
    peak = float(core.max())
    if peak >= full:
        return True
    middle = np.median(around)
    noise = 1.4826 * float(np.median(np.abs(around - middle)))
    height = peak - float(middle)
    if not noise > 0 or height < BRIGHT * noise:
        return False
    return int((core - middle > FLAT * height).sum()) >= PLATEAU


def scale_min_max(image: np.ndarray) -> np.ndarray:
    """Scale an image to 0 … 1 (SPFusion, eq. 1); one without contrast to 0."""
    low, high = float(image.min()), float(image.max())
    if not high > low:
        return np.zeros_like(image)
    return ((image - low) / (high - low)).astype(np.float32)


def stored(images: np.ndarray) -> np.ndarray:
    """Images of 0 … 1 as they are kept: 16-bit integers, `NO_VALUE` for NaN."""
    known = np.isfinite(images)
    values = np.where(known, images * SCALED, NO_VALUE)
    return np.rint(values).astype(np.int16)


def restored(values: np.ndarray) -> np.ndarray:
    """Inverse of `stored`, float32; of numbers that aren't integers nothing changes."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    images = values.astype(np.float32) / SCALED
    images[values == NO_VALUE] = np.nan
    return images


def usable(flags: np.ndarray) -> np.ndarray:
    """Say which stars have an image in all bands, from flags (star, band)."""
    return (flags & int(NOTHING) == 0).all(axis=-1)
