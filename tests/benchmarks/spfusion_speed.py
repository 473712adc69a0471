"""Stars per second of SPFusion: plain eager float32 against ours.

    python tests/benchmarks/spfusion_speed.py [--batch 32] [--cores 1] [--rounds 8]
        [--default-allocator] [--clock cpu]

"plain" is the network as one writes it down: channels first, normalisations and
rectifiers by themselves, all cores for each operation in turn. "ours" is what
`SPFusion.fuse` makes of the same weights, channels last, and a process per core, which
is how `stellar predict` uses them; "plain, a process per core", "as built" (channels
last, nothing joined) and "joined" (but all multiplications done, as on processors
without AVX2 or with more) tell the parts of the gain from each other. All use the same
allocator: the one that keeps freed memory (`parallel.keep_freed_memory`), or glibc's
default. Outputs are compared before any clock is read; each round times all in turn.
The best round counts, as other processes can only slow one down; the median is printed
beside it. ``--clock cpu`` counts the process's own time, which says more on a busy
machine, and is for one core only.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from stellarcli import models, parallel

GOAL = 1.5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
STEPS = 3  # batches that a process works through in a round


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
    """The networks, with statistics other than 0 and 1."""
    torch.manual_seed(0)
    network = models.build("spfusion", pixels=3584, labels=2).train()
    with torch.no_grad():
        for _ in range(3):
            network(*stars(8))
    network.eval()
    joined = copy.deepcopy(network).fuse()
    joined.trunk["photometric"].by_rows = None
    return {
        "plain": plain(network),
        "as built": network,
        "joined": joined,
        "ours": copy.deepcopy(network).fuse(),
    }


def stars(count):
    generator = torch.Generator().manual_seed(1)
    flux = torch.rand(count, 3584, generator=generator)
    return flux, flux, torch.rand(count, 3, 128, 128, generator=generator)


@torch.inference_mode()
def check(networks):
    """Stop unless all say the same."""
    values = {name: network(*stars(8))[0] for name, network in networks.items()}
    scale = values["plain"].abs().mean()
    for name, value in values.items():
        moved = (value - values["plain"]).abs().max() / scale
        print(f"outputs of {name!r} differ by at most {moved:.1e}")
        if not moved < 1e-5:
            raise SystemExit(f"{name!r} is wrong: no use in timing it")


@torch.inference_mode()
def serve(networks, batch, pipe):
    """Run networks by name, for `Processes`."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    fed = stars(batch)
    for name in iter(pipe.recv, None):
        for _ in range(STEPS):
            networks[name](*fed)
        pipe.send(name)


class Processes:
    """One process per core, with its own batches."""

    def __init__(self, networks, batch, count):
        context = multiprocessing.get_context("fork")
        self.pipes, self.processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(networks, batch, theirs), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, name):
        """All of them at once, until the last is through."""
        for pipe in self.pipes:
            pipe.send(name)
        for pipe in self.pipes:
            pipe.recv()

    def stop(self):
        """Let them end."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def contestants(networks, batch, cores) -> tuple[dict[str, Callable], Callable]:
    """What to time, each over ``STEPS * batch * cores`` stars, and how to end."""
    fed = stars(batch)

    def here(name):
        for _ in range(STEPS * cores):
            networks[name](*fed)

    if cores == 1:
        return {name: lambda name=name: here(name) for name in networks}, lambda: None
    processes = Processes(networks, batch, cores)  # forks, so before any threads
    found = {"plain": lambda: here("plain")}
    found["plain, a process per core"] = lambda: processes.run("plain")
    found["as built, likewise"] = lambda: processes.run("as built")
    found["joined, likewise"] = lambda: processes.run("joined")
    found["ours"] = lambda: processes.run("ours")
    return found, processes.stop


@torch.inference_mode()
def measure(found, stars_each, rounds, clock):
    """Stars per second by name, one value per round."""
    rates = {name: [] for name in found}
    for function in found.values():
        function()  # for the caches
    for _ in range(rounds):
        for name, function in found.items():
            start = clock()
            function()
            rates[name].append(stars_each / (clock() - start))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--default-allocator", action="store_true")
    options = parser.parse_args()
    if options.clock == "cpu" and options.cores > 1:
        parser.error("--clock cpu is for one core: processes have clocks of their own")
    if not options.default_allocator:
        parallel.keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    networks = build()
    check(networks)
    found, stop = contestants(networks, options.batch, options.cores)
    torch.set_num_threads(options.cores)
    each = STEPS * options.batch * options.cores
    rates = measure(found, each, options.rounds, CLOCKS[options.clock])
    stop()
    width = max(map(len, rates))
    for name, values in rates.items():
        ratio = max(values) / max(rates["plain"])
        middle = statistics.median(values) / statistics.median(rates["plain"])
        goal = f"  (goal {GOAL})" if name == "ours" else ""
        print(
            f"{name:{width}} {max(values):6.1f} stars/s {ratio:.2f} x, "
            f"medians {statistics.median(values):6.1f} {middle:.2f} x{goal}"
        )


if __name__ == "__main__":
    main()
