"""Many spectra as arrays ``(spectrum, pixel)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stellarcli.spectrum import PixelMask, Spectrum

Segments = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """What preprocessing steps take and return.

    Attributes
    ----------
    wavelength : ndarray of float64, shape (pixel,) or (spectrum, pixel)
        Vacuum Å, increasing. Two-dimensional while every spectrum has its own
        sampling, with NaN behind the end of the shorter ones.
    flux, ivar : ndarray of float32, shape (spectrum, pixel)
        Flux and its inverse variance; `ivar` is 0 wherever `mask` is set.
    mask : ndarray of uint8, shape (spectrum, pixel)
        `stellarcli.spectrum.PixelMask` bits; 0 is a good pixel.
    redshift : ndarray of float64, shape (spectrum,)
        z that `rest_frame` removes; 0 where no velocity is known, and afterwards.
    segments : tuple over spectra of tuples of (start, stop)
        Pixel ranges (arms, detectors) that no interpolation may cross. One entry
        serves all spectra once they share a grid.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    redshift: np.ndarray
    segments: tuple[Segments, ...]

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self.flux)

    @property
    def common_grid(self) -> bool:
        """Whether all spectra share one wavelength array."""
        return self.wavelength.ndim == 1

    @property
    def good(self) -> np.ndarray:
        """Pixels that carry information, shape (spectrum, pixel)."""
        return self.mask == 0

    def segments_of(self, row: int) -> Segments:
        """Return the segments of one spectrum."""
        return self.segments[row if len(self.segments) > 1 else 0]

    def parts(self) -> Iterator[tuple[np.ndarray, slice]]:
        """Yield rows and pixels that belong together: one segment of like spectra.

        Spectra that share no grid may differ in their segments.
        """
        rows: dict[Segments, list[int]] = {}
        for row in range(len(self)):
            rows.setdefault(self.segments_of(row), []).append(row)
        for segments, members in rows.items():
            for start, stop in segments:
                yield np.array(members), slice(start, stop)

    def rows(self, part: slice | np.ndarray) -> Batch:
        """Return some of the spectra."""
        own = self.segments
        if len(own) > 1:
            own = tuple(own[row] for row in np.arange(len(self))[part].tolist())
        return replace(
            self,
            wavelength=self.wavelength if self.common_grid else self.wavelength[part],
            flux=self.flux[part],
            ivar=self.ivar[part],
            mask=self.mask[part],
            redshift=self.redshift[part],
            segments=own,
        )

    def with_flux(self, flux: np.ndarray, factor: np.ndarray | None = None) -> Batch:
        """Return a copy with new flux.

        Parameters
        ----------
        flux : ndarray, shape (spectrum, pixel)
        factor : ndarray, broadcasts against `flux`, optional
            What the noise was divided by, so that ``ivar`` becomes ivar·factor².
        """
        # not factor², which may be too small for float32 where ivar is large
        ivar = self.ivar if factor is None else self.ivar * factor * factor
        return replace(
            self,
            flux=np.asarray(flux, dtype=np.float32),
            ivar=np.asarray(ivar, dtype=np.float32),
        )

    @classmethod
    def from_spectra(cls, spectra: Sequence[Spectrum]) -> Batch:
        """Stack spectra of any sampling, padded to the longest.

        Parameters
        ----------
        spectra : sequence of Spectrum

        Returns
        -------
        Batch
            Padding has NaN wavelength, zero flux and ivar, and `PixelMask.OUTSIDE`.
        """
        shape = (len(spectra), max((s.flux.size for s in spectra), default=0))
        wavelength = np.full(shape, np.nan)
        flux = np.zeros(shape, dtype=np.float32)
        ivar = np.zeros(shape, dtype=np.float32)
        mask = np.full(shape, PixelMask.OUTSIDE, dtype=np.uint8)
        for row, spectrum in enumerate(spectra):
            size = spectrum.flux.size
            wavelength[row, :size] = spectrum.wavelength
            flux[row, :size] = spectrum.flux
            ivar[row, :size] = spectrum.ivar
            mask[row, :size] = spectrum.mask
        return cls(
            wavelength=wavelength,
            flux=flux,
            ivar=ivar,
            mask=mask,
            redshift=np.array([s.redshift for s in spectra], dtype=np.float64),
            segments=tuple(s.segments for s in spectra),
        )
