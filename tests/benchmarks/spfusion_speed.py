"""Stars per second of SPFusion: plain eager float32 against ours.

    python tests/benchmarks/spfusion_speed.py [--batch 32] [--threads 1] [--rounds 8]
        [--default-allocator] [--clock cpu]

"plain" is the network as one writes it down: channels first, normalisations and
rectifiers by themselves. "ours" is what `SPFusion.fuse` makes of the same weights,
channels last. Both run in one process with the same allocator: the one that keeps freed
memory (`parallel.keep_freed_memory`), or glibc's default. Outputs are compared before
any clock is read; each round times both in turn. The best round counts, as other
processes can only slow one down; the median is printed beside it. ``--clock cpu``
counts the process's own time, which says more on a busy machine (one thread only).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch.nn import functional

from stellarcli import models, parallel

GOAL = 1.5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def plain(network):
    """The same weights, channels first."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    photometric, spectral = network.trunk["photometric"], network.trunk["spectral"]

    def see(images):
        x = photometric.project(photometric.block(photometric.stem(images)))
        return photometric.linear(functional.gelu(x.flatten(2)))[:, :, None]

    photometric.forward = see
    spectral.forward = lambda flux: spectral.layers(flux[:, None, None])
    return network


def build():
    """Both networks, with statistics other than 0 and 1."""
    torch.manual_seed(0)
    network = models.build("spfusion", pixels=3584, labels=2).train()
    with torch.no_grad():
        for _ in range(3):
            network(*stars(8))
    network.eval()
    return {"plain": plain(network), "ours": copy.deepcopy(network).fuse()}


def stars(count):
    generator = torch.Generator().manual_seed(1)
    flux = torch.rand(count, 3584, generator=generator)
    return flux, flux, torch.rand(count, 3, 128, 128, generator=generator)


@torch.inference_mode()
def measure(networks, batch, rounds, clock):
    fed = stars(batch)
    values = {name: network(*fed)[0] for name, network in networks.items()}
    moved = (values["ours"] - values["plain"]).abs().max() / values[
        "plain"
    ].abs().mean()
    print(f"outputs differ by at most {moved:.1e}")
    if not moved < 1e-4:
        raise SystemExit("ours is wrong: no use in timing it")
    found = {name: [] for name in networks}
    for _ in range(rounds):
        for name, network in networks.items():
            start = clock()
            network(*fed)
            found[name].append(batch / (clock() - start))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--default-allocator", action="store_true")
    options = parser.parse_args()
    if not options.default_allocator:
        parallel.keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    clock = CLOCKS[options.clock]
    found = measure(build(), options.batch, options.rounds, clock)
    for name, values in found.items():
        ratio = max(values) / max(found["plain"])
        goal = f"  (goal {GOAL})" if name == "ours" else ""
        print(
            f"{name:6} {max(values):6.1f} stars/s "
            f"(median {statistics.median(values):.1f})  {ratio:.2f} x{goal}"
        )


if __name__ == "__main__":
    main()
