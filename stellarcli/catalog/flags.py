"""The bits of the flag column: what is to be known about a row."""

from __future__ import annotations

from enum import IntFlag

from stellarcli.provenance import Card


class Flag(IntFlag):
    """What is to be known about a row. Bits 17 to 23 are spare, 24 to 30 the user's."""

    UNREADABLE = 1 << 0
    NO_COVERAGE = 1 << 1
    LOW_SNR = 1 << 2
    MASKED_PIXELS = 1 << 3
    NO_VELOCITY = 1 << 4
    NOT_A_STAR = 1 << 5
    OUT_OF_RANGE = 1 << 6
    UNLIKE_TRAINING = 1 << 7
    LARGE_ERROR = 1 << 8
    PARTIAL_COVERAGE = 1 << 9
    DISAGREEMENT = 1 << 10
    DUPLICATE = 1 << 11
    NOISE_MEASURED = 1 << 12
    ARMS_DIFFER = 1 << 13
    OTHER_TYPE = 1 << 14
    NO_IMAGE = 1 << 15
    IMAGE_DEFECT = 1 << 16


FLAG_MEANING = {
    Flag.UNREADABLE: "no spectrum could be read",
    Flag.NO_COVERAGE: "no good pixel in the model's wavelength range",
    Flag.LOW_SNR: "signal-to-noise ratio below 10",
    Flag.MASKED_PIXELS: "over 20 % of the covered pixels masked",
    Flag.NO_VELOCITY: "no radial velocity known, taken as 0",
    Flag.NOT_A_STAR: "the header's class is not a star",
    Flag.OUT_OF_RANGE: "a value is outside the trained label range",
    Flag.UNLIKE_TRAINING: "spectrum unlike those of the training set",
    Flag.LARGE_ERROR: "a predicted error over half the spread of the labels",
    Flag.PARTIAL_COVERAGE: "over 2 % of the model's wavelength range missing",
    Flag.DISAGREEMENT: "members of the ensemble disagree",
    Flag.DUPLICATE: "the same file was given more than once",
    Flag.NOISE_MEASURED: "no errors in the file, noise measured in the flux",
    Flag.ARMS_DIFFER: "the measured velocities of two arms differ",
    Flag.OTHER_TYPE: "the header's type is not one of the training set's",
    Flag.NO_IMAGE: "no image in all bands: the spectrum alone decided",
    Flag.IMAGE_DEFECT: "image saturated, with holes, or cut by an edge",
}

FAILED = Flag.UNREADABLE | Flag.NO_COVERAGE  # rows without values

# Rows not to trust: without values, or the model has left what it was trained for.
# Low S/N, no velocity and partial coverage aren't here: noise is in the error, most
# stars move by less than a pixel, and what the rest does to a spectrum that matters
# shows as UNLIKE_TRAINING or LARGE_ERROR. Networks that see images are trained without
# them, too. Many masked pixels are here, because a
# spectrum mostly filled in by interpolation looks smooth and is trusted too much.
BAD = (
    FAILED
    | Flag.MASKED_PIXELS
    | Flag.NOT_A_STAR
    | Flag.OUT_OF_RANGE
    | Flag.UNLIKE_TRAINING
    | Flag.LARGE_ERROR
    | Flag.DISAGREEMENT
    | Flag.ARMS_DIFFER
    | Flag.OTHER_TYPE
)


def flag_cards() -> list[Card]:
    """Cards that explain the bits of a flag column, and say which not to trust."""
    cards: list[Card] = []
    for flag, meaning in FLAG_MEANING.items():
        bit = flag.bit_length() - 1
        text = f"{flag.name}: {meaning}"
        cards.append((f"FLAGB{bit}", text, f"flag bit {bit} = {flag}"))
    return [*cards, ("FLAGBAD", int(BAD), "bits of rows not to trust")]


def describe_flags(value: int) -> str:
    """Names of the bits set in a flag, ``"LOW_SNR, NO_VELOCITY"``; ``"none"`` for 0."""
    bits = [1 << bit for bit in range(32) if int(value) >> bit & 1]
    names = [Flag(bit).name or f"bit {bit.bit_length() - 1}" for bit in bits]
    return ", ".join(names) or "none"
