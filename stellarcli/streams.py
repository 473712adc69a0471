"""Streams: training spectra that are simulated while a network learns from them.

A `Stream` looks like a prepared table to `dataset`, but has no file: its spectra are
observed, by one of `surveys.instruments`, when they are asked for. In every epoch the
rows are other stars and other observations; those kept for validation are always the
same. All of it follows from the seed, so that a resumed training sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from stellarcli import feeding
from stellarcli.errors import UsageError, unknown
from stellarcli.feeding import Feed
from stellarcli.preprocess import Recipe
from stellarcli.surveys.emulator import Emulator
from stellarcli.surveys.instruments import INSTRUMENTS, ApogeeEmulator, Sky

HELD = 0.06  # validation rows per training row …
LEAST_HELD, MOST_HELD = 32, 256  # … but no fewer and no more
GROUP = 32  # of them, observed together
PREFIX = "stream "


class Stream:
    """Rows that are simulated when they are read.

    Parameters
    ----------
    instrument : str
        Key of `surveys.instruments.INSTRUMENTS`.
    size : int
        Spectra per epoch.
    recipe : Recipe
        They are prepared with.
    sky : Sky
    seed : int

    Attributes
    ----------
    path : str
        What messages call it.
    wavelength : None
        Every spectrum has its own, unless the recipe resamples.
    velocities : str
        Where radial velocities are from, as of a prepared table.
    """

    velocities = "header"

    def __init__(self, instrument: str, size: int, recipe: Recipe, sky: Sky, seed: int):
        if instrument not in INSTRUMENTS:
            raise unknown("instrument of a stream", instrument, INSTRUMENTS)
        if size < 1:
            raise UsageError(f"stream.{instrument} must be at least 1, not {size}.")
        self.instrument = INSTRUMENTS[instrument](sky)
        self.name, self.path = instrument, f"{PREFIX}{instrument}"
        self.recipe, self.wavelength = recipe, recipe.wavelength
        self.size, self.seed = size, seed
        self.held = int(np.clip(HELD * size, LEAST_HELD, MOST_HELD))
        self.names = ["objid", "flag", "split", *self.instrument.names]
        self.labels = np.empty((0, 0))
        self._kept: list[Feed] = []
        self.redraw(0)

    def __len__(self) -> int:
        """Return the number of rows: those of an epoch and those kept."""
        return self.size + self.held

    @property
    def pixels(self) -> int:
        """Pixels of the longest spectrum."""
        if self.wavelength is not None:
            return self.wavelength.size
        return self.instrument.pixels

    def redraw(self, epoch: int) -> None:
        """Draw the stars of an epoch; those kept for validation stay."""
        self.epoch = epoch
        drawn = self.instrument.draw(self.size, self._random("stars", epoch))
        kept = self.instrument.draw(self.held, self._random("kept"))
        self.labels = np.concatenate([drawn, kept])

    def column(self, name: str) -> np.ndarray:
        """Return a label, or what prepared tables have beside labels."""
        if name.lower() == "objid":
            return np.array([f"{self.name}-{n}" for n in range(len(self))])
        if name.lower() == "flag":
            return np.zeros(len(self), dtype=np.int32)
        if name.lower() == "split":
            return np.where(np.arange(len(self)) < self.size, "train", "validation")
        if name.lower() not in self.instrument.names:
            raise unknown(f"column of the {self.path}", name, self.names)
        return self.labels[:, self.instrument.names.index(name.lower())]

    def spectra(self, index: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Observe stars: flux and ivar, float32, each (spectrum, pixel)."""
        feed = self.feed(index, feeding.SPECTRUM)
        return feed["flux"], feed["ivar"]

    def feed(
        self,
        index: np.ndarray | slice,
        names: Sequence[str],
        extra: Sequence[str] = (),
    ) -> Feed:
        """Observe the stars of some rows; as `PreparedTable.feed`."""
        rows = np.arange(len(self))[index]
        if "images" in names:
            self.check_images()
        kept = rows >= self.size
        parts = []
        if fresh := rows[~kept].tolist():
            rng = self._random("observation", self.epoch, fresh)
            parts.append((~kept, self._observe(self.labels[fresh], rng)))
        for number, held in enumerate(self._held() if kept.any() else []):
            group = kept & ((rows - self.size) // GROUP == number)
            own = rows[group] - self.size - number * GROUP
            parts.append((group, feeding.taken(held, own)))
        widest = max((len(part["flux"].T) for _, part in parts), default=self.pixels)
        found: Feed = {"extra": self._quantities(self.labels[rows], extra)}
        for name in ("flux", "ivar", "wavelength"):
            found[name] = feeding.empty(name, (rows.size, widest))
            for where, part in parts:
                found[name][where, : part[name].shape[1]] = part[name]
        return {name: found[name] for name in names}

    def _observe(self, labels: np.ndarray, rng: np.random.Generator) -> Feed:
        """Observe stars and prepare them."""
        batch = self.recipe.apply(self.instrument.observe(labels, rng))
        good = np.isfinite(batch.flux) & (batch.mask == 0)
        return {
            "flux": np.where(good, batch.flux, 0).astype(np.float32),
            "ivar": np.where(good, batch.ivar, 0).astype(np.float32),
            "wavelength": np.broadcast_to(batch.wavelength, batch.flux.shape),
        }

    def _held(self) -> list[Feed]:
        """Return validation spectra, `GROUP` together, observed once."""
        for start in range(GROUP * len(self._kept), self.held, GROUP):
            labels = self.labels[self.size + start :][:GROUP]
            self._kept.append(self._observe(labels, self._random("kept", start)))
        return self._kept

    def _quantities(self, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
        found = feeding.empty("extra", (len(labels), len(names)))
        for number, name in enumerate(names):
            if name.lower() in self.instrument.names:
                own = self.instrument.names.index(name.lower())
                found[:, number] = labels[:, own]
        return found

    def check_images(self) -> None:
        """Refuse networks that see images."""
        raise UsageError(
            f"the {self.path} has no images; train this network on prepared tables."
        )

    def _random(self, *what: object) -> np.random.Generator:
        """Return the random numbers for one purpose."""
        text = f"{self.seed}:{self.name}:{what}"
        digest = hashlib.sha256(text.encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def streams(
    sizes: Mapping[str, int],
    recipe: Recipe,
    seed: int,
    emulator: str | None = None,
    pool: int | None = None,
) -> list[Stream]:
    """Open streams.

    Parameters
    ----------
    sizes : mapping of str to int
        Spectra per epoch, by instrument.
    recipe : Recipe
    seed : int
    emulator : str, optional
        File to use instead of the shipped emulator of the optical.
    pool : int, optional
        Stars synthesised at medium resolution.

    Raises
    ------
    UsageError
        If there is no such instrument.
    """
    if not sizes:
        return []
    sky = Sky(
        emulator=Emulator.load(emulator),
        apogee=ApogeeEmulator.load(),
        seed=seed,
        **({"pool": pool} if pool else {}),
    )
    return [Stream(name, int(size), recipe, sky, seed) for name, size in sizes.items()]
