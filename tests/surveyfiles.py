"""Builders of tiny files in every layout that the readers know.

Each function writes one file and returns its path; `EXAMPLES` lists them with the
survey that has to recognise them. The stars have a line at known vacuum wavelengths
(`LINES`), displaced by the velocity asked for, so that tests can look for it.
"""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import numpy as np
from astropy.io import fits

LINES = (5000.0, 6500.0, 16000.0)  # Å, vacuum, at rest
C = 299792.458  # km/s


def star(wavelength, velocity=0.0, level=100.0, noise=0.01, seed=1):
    """Flux with the lines of `LINES`, and its inverse variance, both float32."""
    wavelength = np.asarray(wavelength, dtype=np.float64)
    flux = np.full(wavelength.shape, level)
    for line in LINES:
        centre, width = line * (1 + velocity / C), line * 3e-4
        flux -= 0.5 * level * np.exp(-0.5 * ((wavelength - centre) / width) ** 2)
    random = np.random.default_rng(seed)
    flux += random.normal(0, noise * level, wavelength.shape)
    ivar = np.full(wavelength.shape, 1 / (noise * level) ** 2)
    return flux.astype(np.float32), ivar.astype(np.float32)


def write(path, *hdus, replace=()):
    """Write HDUs, gzipped if the name ends in .gz; `replace` is a pair of bytes."""
    path, memory = Path(path), BytesIO()
    fits.HDUList(list(hdus)).writeto(memory)
    data = memory.getvalue()
    if replace:
        assert replace[0] in data
        data = data.replace(*replace, 1)
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def grid(size=400, start=3.69, step=1e-4):
    """Log10 grid of vacuum wavelengths, float64; the default covers 5000 Å."""
    return 10 ** (start + step * np.arange(size))


def lamost_cards(**cards):
    """Cards of a LAMOST header."""
    values = {
        "OBSID": 740103002,
        "DATA_V": "LAMOST DR7",
        "TELESCOP": "LAMOST",
        "LMJD": 58575,
        "MJD": 58574,
        "PLANID": "HD103621N361936B01",
        "SPID": 3,
        "FIBERID": 2,
        "RA": 158.209454,
        "DEC": 35.693413,
        "DESIG": "LAMOST J103250.26+354136.2",
        "HELIO": True,
        "VACUUM": True,
        "CLASS": "STAR",
        "SUBCLASS": "G5",
        "Z": 1e-4,
        "SNRU": 10.0,
        "SNRG": 31.5,
        "SNRR": 50.0,
        "SNRI": 60.0,
        "SNRZ": -9999.0,
    }
    values.update(cards)
    return {key: value for key, value in values.items() if value is not None}


def _velocity(cards):
    """Velocity that a LAMOST header's Z stands for."""
    z = cards.get("Z", 0.0)
    return z * C if isinstance(z, float) and abs(z) < 1 else 0.0


def lamost_image(path, size=400, flux=None, ivar=None, dtype=">f4", dr1=False, **cards):
    """LAMOST LRS until DR8: an image of five rows; `dr1` has no wavelength row."""
    wavelength = grid(size)
    values = lamost_cards(**cards)
    made = star(wavelength, _velocity(values))
    flux, ivar = made[0] if flux is None else flux, made[1] if ivar is None else ivar
    zero = np.zeros(size)
    third = np.asarray(flux) / 100 if dr1 else wavelength
    values |= {"COEFF0": 3.69, "COEFF1": 1e-4}
    names = "Flux, Inverse, Wavelength, Andmask, Ormask"
    if dr1:
        names = "Flux Inverse Subcontinuum Andmask Ormask"
        values = {k.replace("SNR", "SN_"): v for k, v in values.items()}
        values.pop("OBSID")
        values.pop("DATA_V")
    hdu = fits.PrimaryHDU(np.stack([flux, ivar, third, zero, zero]).astype(dtype))
    hdu.header["EXTEN0"] = names
    hdu.header.update(values)
    return write(path, hdu)


def lamost_table(path, size=400, flux=None, ivar=None, columns=None, **cards):
    """LAMOST LRS since DR9: empty primary with a stray NAXIS1, one row of vectors."""
    wavelength = grid(size)
    values = lamost_cards(DATA_V="LAMOST DR10", **cards)
    made = star(wavelength, _velocity(values))
    flux, ivar = made[0] if flux is None else flux, made[1] if ivar is None else ivar
    zero = np.zeros(size)
    arrays = {
        "FLUX": flux,
        "IVAR": ivar,
        "WAVELENGTH": wavelength,
        "ANDMASK": zero,
        "ORMASK": zero,
        "NORMALIZATION": np.asarray(flux) / 100,
    }
    names = columns or list(arrays)
    form = [
        fits.Column(n, f"{size}E", array=np.array([arrays[n]], ">f4")) for n in names
    ]
    table = fits.BinTableHDU.from_columns(form, name="COADD")
    primary = fits.PrimaryHDU()
    primary.header.update(values | {"NORM": 1})
    # astropy takes the stray card out on writing
    stray = (b"NORM    =                    1", b"NAXIS1  =                 3909")
    return write(path, primary, table, replace=stray)


MRS_ARMS = {"B": (3.6927, 300), "R": (3.8075, 250)}  # log10 start; pixels


def lamost_mrs(
    path, vectors=False, arms="BR", stubs="", exposures=(83555758,), **cards
):
    """LAMOST MRS; `stubs` are arms whose coadd is all zeros, without any exposure."""
    values = lamost_cards(Z=None, CLASS=None, SUBCLASS=None, **cards)
    values = {key: value for key, value in values.items() if not key.startswith("SNR")}
    primary = fits.PrimaryHDU()
    primary.header.update(values)
    primary.header["EXTNAME"] = "Information"
    hdus = [primary]
    for arm in arms:
        start, size = MRS_ARMS[arm]
        wavelength = grid(size, start, 1e-4)
        flux, ivar = star(wavelength)
        if arm in stubs:
            wavelength, flux, ivar = (np.zeros(size) for _ in range(3))
        hdus.append(_mrs_table(f"COADD_{arm}", wavelength, flux, ivar, vectors))
        hdus[-1].header["SNR"] = 40.0 if arm == "B" else 80.0
    for number, minute in enumerate(exposures):
        for arm in arms:
            if arm in stubs:
                continue
            wavelength = grid(MRS_ARMS[arm][1], MRS_ARMS[arm][0], 1e-4)
            if arm == "R":  # single red exposures run from long to short
                wavelength = wavelength[::-1]
            flux, ivar = star(wavelength, noise=0.05, seed=number)
            hdu = _mrs_table(
                f"{arm}-{minute}", wavelength, flux, ivar, vectors, "PIXMASK"
            )
            hdu.header["SNR"] = 20.0 + number
            hdus.append(hdu)
    return write(path, *hdus)


def _mrs_table(name, wavelength, flux, ivar, vectors, mask="ANDMASK"):
    with np.errstate(divide="ignore"):
        loglam = np.where(wavelength > 0, np.log10(np.maximum(wavelength, 1e-9)), 0)
    arrays = {"FLUX": flux, "IVAR": ivar}
    arrays |= {"WAVELENGTH": wavelength} if vectors else {"LOGLAM": loglam}
    size = len(flux)
    shape = (1, size) if vectors else (size,)
    form = [
        fits.Column(
            n, f"{size}E" if vectors else "E", array=a.astype(">f4").reshape(shape)
        )
        for n, a in arrays.items()
    ]
    form.append(
        fits.Column(
            mask, f"{size}I" if vectors else "I", array=np.zeros(shape, dtype=np.int16)
        )
    )
    if mask == "ANDMASK":
        form.append(form[-1].copy())
        form[-1].name = "ORMASK"
    return fits.BinTableHDU.from_columns(form, name=name)


def sdss_spec(path, size=400, flux=None, ivar=None, and_mask=None, z=1e-4, lite=True):
    """SDSS spec file: coadd by rows, one row of SPECOBJ; not lite: an exposure too."""
    wavelength = grid(size)
    made = star(wavelength, z * C)
    flux, ivar = made[0] if flux is None else flux, made[1] if ivar is None else ivar
    bits = np.zeros(size, np.int32) if and_mask is None else and_mask
    coadd = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=flux),
            fits.Column("loglam", "E", array=np.log10(wavelength)),
            fits.Column("ivar", "E", array=ivar),
            fits.Column("and_mask", "J", array=bits),
            fits.Column("or_mask", "J", array=bits),
        ],
        name="COADD",
    )
    row = fits.BinTableHDU.from_columns(
        [
            fits.Column("SPECOBJID", "22A", array=["  695908431386667008"]),
            fits.Column("CLASS", "6A", array=["STAR"]),
            fits.Column("SUBCLASS", "21A", array=["K3"]),
            fits.Column("Z", "E", array=[z]),
            fits.Column("SN_MEDIAN", "5E", array=[[4, 35, 60, 66, 59]]),
        ],
        name="SPECOBJ",
    )
    primary = fits.PrimaryHDU()
    primary.header.update(
        {"PLUG_RA": 236.97794, "PLUG_DEC": 52.815963, "RA": 237.3, "DEC": 52.6}
        | {"MJD": 52049, "PLATEID": 618, "FIBERID": 372, "TELESCOP": "SDSS 2.5-M"}
    )
    extra = [] if lite else [_mrs_table("B2-00009982", wavelength, flux, ivar, False)]
    return write(path, primary, coadd, row, *extra)


def apogee_cards(**cards):
    """Cards of an APOGEE header."""
    return {
        "OBJID": "2M01183798+8403419",
        "OBJTYPE": "STAR",
        "RA": 19.658251,
        "DEC": 84.061646,
        "SNR": 45.0,
        "MJD5": 55844,
    } | cards


def apogee_visit(path, size=200, velocity=30.0, correction=11.0, mask=None):
    """APOGEE visit: three detectors, long wavelengths first, not heliocentric."""
    starts = (16480.0, 15870.0, 15150.0)
    wavelength = np.stack([s + 2.0 * np.arange(size)[::-1] for s in starts])
    flux, ivar = star(wavelength, velocity - correction)
    bits = np.zeros(flux.shape, np.int16) if mask is None else mask
    primary = fits.PrimaryHDU()
    primary.header.update(
        apogee_cards(BC=correction, VRAD=velocity - correction, VHELIO=velocity)
    )
    arrays = (flux, (1 / np.sqrt(ivar)).astype(np.float32), bits, wavelength)
    return write(path, primary, *(fits.ImageHDU(array) for array in arrays))


def apogee_star(path, size=8575, visits=2, velocity=30.0, normalised=False):
    """APOGEE star: visits combined, at rest; or the normalised spectrum of ASPCAP."""
    wavelength = 10 ** (4.179 + 6e-6 * np.arange(size))
    rows = 1 if visits < 2 else visits + 2
    made = [star(wavelength, seed=row) for row in range(rows)]
    flux = np.stack([f for f, _ in made])
    error = np.stack([1 / np.sqrt(i) for _, i in made]).astype(np.float32)
    flux[:, :50], error[:, :50] = 0, 1e10  # off the detectors
    third = np.zeros(flux.shape, np.int16)
    if normalised:
        third = flux.copy()
    arrays = [a[0] if rows == 1 or normalised else a for a in (flux, error, third)]
    primary = fits.PrimaryHDU()
    cards = {f"SNRVIS{i + 1}": 20.0 + i for i in range(visits)}
    primary.header.update(apogee_cards(VHELIO=velocity, NVISITS=visits) | cards)
    hdus = [fits.ImageHDU(array) for array in arrays]
    for hdu in hdus:
        hdu.header.update({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
        hdu.header["CTYPE1"] = "LOG-LINEAR"
    return write(path, primary, *hdus)


def table(path, arrays, units=None, vectors=False, primary=None, **cards):
    """Any binary table: name -> array, rows per pixel or one row of vectors."""
    form = []
    for name, array in arrays.items():
        array = np.asarray(array)
        letter = {"f": "D", "i": "J", "b": "L"}[array.dtype.kind]
        unit = (units or {}).get(name)
        if vectors:
            form.append(
                fits.Column(name, f"{array.size}{letter}", unit, array=array[None])
            )
        else:
            form.append(fits.Column(name, letter, unit, array=array))
    hdu = fits.BinTableHDU.from_columns(form)
    hdu.header.update(cards)
    first = fits.PrimaryHDU()
    first.header.update(primary or {})
    return write(path, first, hdu)


def generic_table(path, size=400, **options):
    """Table with wavelength, flux and error, a row per pixel, in vacuum Å."""
    wavelength = grid(size)
    flux, ivar = star(wavelength)
    arrays = {"wavelength": wavelength, "flux": flux, "error": 1 / np.sqrt(ivar)}
    return table(path, arrays, **options)


def image(path, flux, error=None, **cards):
    """1-D image with the cards given, and errors in an extension called SIGMA."""
    primary = fits.PrimaryHDU(np.asarray(flux, dtype=">f4"))
    primary.header.update(cards)
    extra = (
        [] if error is None else [fits.ImageHDU(np.asarray(error, ">f4"), name="SIGMA")]
    )
    return write(path, primary, *extra)


def generic_image(path, size=400, **cards):
    """1-D image on a linear scale from 4950 Å in vacuum, with errors."""
    wavelength = 4950.0 + 0.5 * np.arange(size)
    flux, ivar = star(wavelength)
    scale = {"CRVAL1": 4950.0, "CDELT1": 0.5, "CRPIX1": 1, "CTYPE1": "WAVE"}
    scale |= {"CUNIT1": "Angstrom", "OBJECT": "HD 1"}
    return image(path, flux, 1 / np.sqrt(ivar), **(scale | cards))


def text(path, size=400, heading="# wavelength flux error", separator=" ", columns=3):
    """Columns of text in vacuum Å."""
    wavelength = grid(size)
    flux, ivar = star(wavelength)
    rows = np.stack([wavelength, flux, 1 / np.sqrt(ivar)])[:columns].T
    lines = [separator.join(f"{value:.6f}" for value in row) for row in rows]
    Path(path).write_text("\n".join([*([heading] if heading else []), *lines, ""]))
    return Path(path)


def galaxy_image(path, size=64):
    """Photometric image: a file of the right kind with no spectrum in it."""
    data = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    hdu = fits.PrimaryHDU(data)
    sky = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0}
    hdu.header.update(
        sky | {"CRPIX1": 32.0, "CRPIX2": 32.0, "CD1_1": -1e-4, "CD2_2": 1e-4}
    )
    return write(path, hdu)


# name of the layout -> (survey, file name, builder, options)
EXAMPLES = {
    "lrs-image": ("lamost-lrs", "a.fits", lamost_image, {}),
    "lrs-image-gz": ("lamost-lrs", "a.fits.gz", lamost_image, {}),
    "lrs-image-float64": ("lamost-lrs", "a.fits", lamost_image, {"dtype": ">f8"}),
    "lrs-dr1": ("lamost-lrs", "a.fits.fits", lamost_image, {"dr1": True}),
    "lrs-table": ("lamost-lrs", "a.fits", lamost_table, {}),
    "lrs-table-gz": ("lamost-lrs", "a.fits.gz", lamost_table, {}),
    "mrs-rows": ("lamost-mrs", "a.fits", lamost_mrs, {}),
    "mrs-vectors": ("lamost-mrs", "a.fits.gz", lamost_mrs, {"vectors": True}),
    "mrs-blue": ("lamost-mrs", "a.fits", lamost_mrs, {"arms": "B"}),
    "sdss-lite": ("sdss", "a.fits", sdss_spec, {}),
    "sdss-full": ("sdss", "a.fits", sdss_spec, {"lite": False}),
    "apogee-visit": ("apogee", "a.fits", apogee_visit, {}),
    "apogee-star": ("apogee", "a.fits", apogee_star, {}),
    "apogee-one-visit": ("apogee", "a.fits", apogee_star, {"visits": 1}),
    "apogee-aspcap": ("apogee", "a.fits", apogee_star, {"normalised": True}),
    "generic-table": ("generic", "a.fits", generic_table, {}),
    "generic-vectors": ("generic", "a.fits", generic_table, {"vectors": True}),
    "generic-image": ("generic", "a.fits", generic_image, {}),
    "generic-text": ("generic", "a.txt", text, {}),
}


def build(name, folder):
    """Write the example of a layout into a folder; its survey and path."""
    survey, file, builder, options = EXAMPLES[name]
    return survey, builder(Path(folder) / file, **options)
