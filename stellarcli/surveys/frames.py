"""SDSS-like frames around simulated stars: what a camera would have seen.

Calibrated images in nanomaggies (22.5 mag is one) of 0.396″ a pixel in g, r and i, each
with a WCS of its own, a Moffat profile, photon and read noise about a subtracted sky,
neighbours as many as the Galactic latitude has, and cores that end where the detector
is full. Unlike SDSS's they are small, made for one star, and called simulated in name
and header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stellarcli.surveys.cards import (
    card,
    decimal,
    header_block,
    padded,
    remark,
)
from stellarcli.surveys.redclump import latitude

SIZE = 192  # pixels of a frame's side
SCALE = 0.396 / 3600  # degrees per pixel
OFFSET = 24.0  # pixels, standard error of the star's place about the frame's middle
SHIFT = 8.0  # pixels between the bands
MOFFAT = 3.0  # exponent of the profile
SEEING = {"g": 1.44, "r": 1.32, "i": 1.26}  # arcsec, median FWHM of SDSS
GAIN = {"g": 1000.0, "r": 940.0, "i": 650.0}  # electrons per nanomaggy
SKY = {"g": 0.30, "r": 0.68, "i": 1.19}  # nanomaggies per pixel, subtracted
READ_NOISE = 5.0  # electrons
FULL = 120e3  # electrons per pixel: stars brighter than 14 mag reach it
REACH = 30  # pixels from a star, within which its light is drawn
LIMITS = (14.5, 22.0)  # r magnitudes of neighbours
OUTSIDE, BAND_LOST = 0.03, 0.02  # of the stars: without frames, without one of them


@dataclass(frozen=True)
class Pointing:
    """A frame's WCS: gnomonic, turned, with the pixel of its reference position.

    Attributes
    ----------
    ra, dec : float
        Of the reference pixel, degrees.
    x, y : float
        Of it, counted from 0.
    angle : float
        Of the pixel rows against the east, radians.
    """

    ra: float
    dec: float
    x: float
    y: float
    angle: float

    @property
    def matrix(self) -> np.ndarray:
        """Degrees per pixel: CD1_1 … CD2_2, (2, 2)."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        return SCALE * np.array([[-cosine, sine], [sine, cosine]])

    def pixels(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Pixels of positions in degrees, (position, 2), x first, counted from 0.

        Calabretta & Greisen 2002, equations 5 and 54, for a pole in the reference.
        """
        a, d, d0 = np.radians(ra - self.ra), np.radians(dec), np.radians(self.dec)
        depth = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a)
        east = np.cos(d) * np.sin(a) / depth
        north = (np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(a)) / depth
        plane = np.degrees(np.stack([east, north], axis=-1))
        return plane @ np.linalg.inv(self.matrix).T + (self.x, self.y)


def moffat(
    x: np.ndarray, y: np.ndarray, fwhm: float, size: int = SIZE
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield the profile of each star and where in the frame it belongs; sum 1."""
    core = fwhm / (2 * np.sqrt(2 ** (1 / MOFFAT) - 1))
    peak = (MOFFAT - 1) / (np.pi * core**2)
    for column, row in zip(x, y, strict=True):
        places = []
        for middle in (row, column):
            low = int(np.clip(middle - REACH, 0, size))
            places.append(slice(low, int(np.clip(middle + REACH + 1, low, size))))
        down = np.arange(places[0].start, places[0].stop)[:, None] - row
        along = np.arange(places[1].start, places[1].stop)[None] - column
        distance = (down**2 + along**2) / core**2
        yield *places, peak * (1 + distance) ** -MOFFAT


def neighbours(ra: float, dec: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the stars around a position: offsets [degrees], then g, r, i, (star, 5).

    There are about three times as many per magnitude and a half, and more towards the
    plane of the Galaxy.
    """
    sine = abs(float(latitude(np.array(ra), np.array(dec))))
    side = 1.5 * SIZE * SCALE  # degrees, so that some lie outside the frame
    density = 0.9 / (sine + 0.05) ** 1.2 * 3600  # per square degree
    count = rng.poisson(min(density * side**2, 250.0))
    low, high = 10 ** (0.28 * np.array(LIMITS))
    r = np.log10(low + (high - low) * rng.random(count)) / 0.28
    colour = 0.75 + 0.35 * rng.normal(size=count)
    redder = 0.42 * colour + 0.08 * rng.normal(size=count)
    place = side * (rng.random((count, 2)) - 0.5)
    return np.column_stack([place, r + colour, r, r - redder])


def pointings(ra: float, dec: float, rng: np.random.Generator) -> dict[str, Pointing]:
    """Draw where the three frames of a star look; now and then it is near an edge."""
    middle = SIZE / 2 + OFFSET / 3 * rng.normal(size=2)
    if rng.random() < 0.05:
        middle += rng.choice([-1.0, 1.0], size=2) * SIZE / 4
    turn = rng.uniform(0, 2 * np.pi)
    found = {}
    for band in SEEING:
        x, y = middle + SHIFT * (rng.random(2) - 0.5)
        own = turn + 0.002 * rng.normal()
        away = 20 * SCALE * rng.normal(size=2)  # the reference isn't the star
        centre = Pointing(ra, dec, x, y, own)
        at = (ra + away[0] / np.cos(np.radians(dec)), dec + away[1])
        reference = centre.pixels(np.array([at[0]]), np.array([at[1]]))[0]
        found[band] = Pointing(*at, *reference, own)
    return found


def render(
    star: np.ndarray, others: np.ndarray, pointing: Pointing, band: str, rng
) -> np.ndarray:
    """Image of a star and its neighbours, float32, (row, column), nanomaggies."""
    column = 2 + list(SEEING).index(band)
    spread = np.cos(np.radians(star["dec"]))
    ra = np.append(star["ra"] + others[:, 0] / spread, star["ra"])
    dec = np.append(star["dec"] + others[:, 1], star["dec"])
    flux = 10 ** (0.4 * (22.5 - np.append(others[:, column], star[band])))
    x, y = pointing.pixels(ra, dec).T
    seeing = SEEING[band] * np.exp(0.1 * rng.normal()) / (3600 * SCALE)
    image = np.zeros((SIZE, SIZE))
    for value, (rows, columns, profile) in zip(flux, moffat(x, y, seeing), strict=True):
        image[rows, columns] += value * profile
    electrons = np.maximum(image + SKY[band], 0) * GAIN[band]
    noise = np.sqrt(electrons + READ_NOISE**2) / GAIN[band]
    image += noise * rng.standard_normal(image.shape)
    return np.minimum(image, FULL / GAIN[band]).astype(np.float32)


def frames(
    star: np.ndarray, name: str, rng: np.random.Generator
) -> dict[str, tuple[str, bytes]]:
    """Make the frames of a star.

    Parameters
    ----------
    star : record
        Of `redclump.draw`.
    name : str
        What comes behind the band in file names.
    rng : numpy.random.Generator

    Returns
    -------
    dict of (str, bytes)
        File name and content by band. Of a few stars a band is missing, or all are.
    """
    ra, dec = float(star["ra"]), float(star["dec"])
    others, places = neighbours(ra, dec, rng), pointings(ra, dec, rng)
    lost = set(SEEING) if rng.random() < OUTSIDE else set()
    if rng.random() < BAND_LOST:
        lost.add(str(rng.choice(list(SEEING))))
    made = {}
    for band, pointing in places.items():
        image = render(star, others, pointing, band, rng)
        if band not in lost:
            file = f"frame-{band}-{name}.fits"
            made[band] = file, _content(image, pointing, band, file)
    return made


def _content(image: np.ndarray, pointing: Pointing, band: str, file: str) -> bytes:
    (cd11, cd12), (cd21, cd22) = pointing.matrix
    cards = [
        card("SIMPLE", True),
        card("BITPIX", -32),
        card("NAXIS", 2),
        card("NAXIS1", image.shape[1]),
        card("NAXIS2", image.shape[0]),
        card("EXTEND", True),
        remark("SIMULATED by stellar fetch simulated; not an observation"),
        card("ORIGIN", "simulated"),
        card("TELESCOP", "simulated", "SDSS's 2.5 m is imitated"),
        card("FILENAME", file),
        card("FILTER", band, "filter used"),
        card("BUNIT", "nanomaggy", "1 nanomaggy = 3.631e-6 Jy"),
        decimal("SATURATE", FULL / GAIN[band], "detector full", 4),
        card("RADESYS", "ICRS"),
        card("CTYPE1", "RA---TAN"),
        card("CTYPE2", "DEC--TAN"),
        card("CUNIT1", "deg"),
        card("CUNIT2", "deg"),
        decimal("CRPIX1", pointing.x + 1, "column of the reference", 6),
        decimal("CRPIX2", pointing.y + 1, "row of the reference", 6),
        decimal("CRVAL1", pointing.ra, "[deg] right ascension of it", 9),
        decimal("CRVAL2", pointing.dec, "[deg] declination of it", 9),
        decimal("CD1_1", cd11, "[deg/pixel]", 12),
        decimal("CD1_2", cd12, "[deg/pixel]", 12),
        decimal("CD2_1", cd21, "[deg/pixel]", 12),
        decimal("CD2_2", cd22, "[deg/pixel]", 12),
    ]
    return header_block(cards) + padded(image.astype(">f4").tobytes())
