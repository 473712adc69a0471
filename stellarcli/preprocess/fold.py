"""S-shaped fold of a spectrum into an image, and back.

Rows run alternately left to right and right to left, so that neighbouring pixels of
the spectrum stay neighbours in the image (SCA-Net, section 2.2).
"""

from __future__ import annotations

import numpy as np

from stellarcli.errors import UsageError


def shapes(pixels: int) -> list[tuple[int, int]]:
    """List rows and columns of images that take so many pixels, squarest first.

    The longer side is at most four times the shorter one; of two shapes that are
    each other's transpose, the one with more columns is first.
    """
    pairs = [(n, pixels // n) for n in range(2, pixels) if pixels % n == 0]
    near = [(a, b) for a, b in pairs if a <= 4 * b and b <= 4 * a]
    return sorted(near, key=lambda shape: (abs(shape[0] - shape[1]), shape))


def check_shape(shape: tuple[int, int], pixels: int) -> None:
    """Raise `UsageError` unless an image of `shape` takes exactly `pixels` pixels."""
    rows, columns = shape
    if rows > 0 and columns > 0 and rows * columns == pixels:
        return
    fitting = ", ".join(f"{a}x{b}" for a, b in shapes(pixels))
    raise UsageError(
        f"a {rows}x{columns} image has {rows * columns} pixels, the spectra have "
        f"{pixels}. Shapes that fit: {fitting or 'none near a square'}."
    )


def fold(spectra: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fold spectra into images.

    Parameters
    ----------
    spectra : ndarray, shape (..., pixel)
    shape : (int, int)
        Rows and columns, with rows x columns = pixel.

    Returns
    -------
    ndarray, shape (..., row, column)
        Row 0 holds the bluest pixels from left to right, row 1 the next ones from
        right to left, and so on.
    """
    check_shape(shape, spectra.shape[-1])
    image = spectra.reshape(*spectra.shape[:-1], *shape).copy()
    image[..., 1::2, :] = image[..., 1::2, ::-1].copy()
    return image


def unfold(images: np.ndarray) -> np.ndarray:
    """Inverse of `fold`, bit for bit; shape (..., row, column) to (..., pixel)."""
    flat = images.copy()
    flat[..., 1::2, :] = flat[..., 1::2, ::-1].copy()
    return flat.reshape(*images.shape[:-2], -1)
