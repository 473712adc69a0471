"""Spectra per second of SCA-Net: plain eager float32 against ours.

    python tests/benchmarks/scanet_speed.py [--variant MMTT] [--batch 32] [--threads 2]
        [--rounds 5] [--default-allocator]

"plain" is the network as one writes it down: channels first, batch normalisations by
themselves. "float32" and "bfloat16" are what `SCANet.fuse` makes of the same weights,
channels last. All run in one process with the same allocator: the one that keeps freed
memory (`parallel.keep_freed_memory`), or glibc's default. Outputs are compared before
any clock is read; each round times all three in turn. The best round counts, as other
processes can only slow one down; the median is printed beside it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time

import torch

from stellarcli import models, parallel
from stellarcli.models.scanet import SCANet

PIXELS = 4096
GOALS = {"float32": 1.1, "bfloat16": 2.0}
LIMITS = {"float32": 1e-5, "bfloat16": 5e-2}


class PlainSCANet(SCANet):
    """The same network with channels first in memory."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.to(memory_format=torch.contiguous_format)

    def image(self, flux):
        return super().image(flux).clone(memory_format=torch.contiguous_format)


def settle_statistics(network, flux):
    """Give batch normalisations running statistics other than 0 and 1."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(flux, flux)
    network.eval()


def build(variant):
    """The three networks with the same weights."""
    torch.manual_seed(0)
    plain = PlainSCANet(PIXELS, 3, variant=variant)
    settle_statistics(plain, spectra(8))
    float32 = models.build("scanet", pixels=PIXELS, labels=3, variant=variant).eval()
    float32.load_state_dict(plain.state_dict())
    float32.fuse()
    bfloat16 = copy.deepcopy(float32)
    bfloat16.trunk.to(torch.bfloat16)
    return {"plain": plain, "float32": float32, "bfloat16": bfloat16}


def spectra(count, pixels=PIXELS):
    """Twenty lines each, of one strength and width per spectrum."""
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.rand, generator=generator)
    strength, width = draw(count, 1, 1), 2 + 60 * draw(count, 1, 1)
    offset = torch.arange(pixels) - pixels * draw(count, 20, 1)
    lines = torch.exp(-0.5 * (offset / width) ** 2)  # (spectrum, line, pixel)
    return (1 - strength * lines).prod(1)


def check(networks, flux):
    """Compare outputs, relative to their typical size.

    Weights are fresh, so that outputs hardly vary between spectra: this finds a wrong
    computation. What bfloat16 costs in precision is for trained weights to say.
    """
    truth = networks["plain"](flux, flux)[0]
    for name, limit in LIMITS.items():
        moved = (networks[name](flux, flux)[0] - truth).abs().max() / truth.abs().mean()
        print(f"{name:9} differs by at most {moved:.1e}")
        if not moved < limit:
            raise SystemExit(f"{name} is wrong: no use in timing it")


def rates(networks, flux, rounds):
    """Spectra per second of each network in every round."""
    found = {name: [] for name in networks}
    for _ in range(rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            network(flux, flux)
            found[name].append(len(flux) / (time.perf_counter() - start))
    return found


@torch.inference_mode()
def measure(networks, batch, rounds):
    flux = spectra(batch)
    check(networks, flux)
    return rates(networks, flux, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="MMTT")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--default-allocator", action="store_true")
    options = parser.parse_args()
    if not options.default_allocator:
        parallel.keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    found = measure(build(options.variant), options.batch, options.rounds)
    plain = max(found["plain"])
    for name, values in found.items():
        rate = max(values)
        goal = f"  (goal {GOALS[name]})" if name in GOALS else ""
        print(
            f"{name:9} {rate:6.1f} spectra/s (median {statistics.median(values):.1f})  "
            f"{rate / plain:.2f} x{goal}"
        )


if __name__ == "__main__":
    main()
