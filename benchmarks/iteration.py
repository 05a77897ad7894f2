"""What the comparisons of one training iteration share: this package against its authors' arithmetic, in one run.

Every measurement is a process of its own, so that its peak of memory is its own; the two sides take turns. Ours goes through
`modistill.training.fit`. The first iterations of a process warm up and are not counted: a training has thousands of them.

Before anything is measured both sides play a few small iterations from equal weights. Their losses must agree to 1e-5 while the
weights are equal (single precision), and to 1e-3 after both were updated, since Adam turns the rounding of small gradients into
whole steps. (Of losses below 1 the differences themselves: those of critics begin near 0.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from modistill.data.batch import Batch
from modistill.files import write_json
from modistill.methods.base import Method
from modistill.training import TrainingSettings, fit

Losses = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        name: of the results.
        build: of the options, a method and the batch it learns from, again and again.
        authors: iterations in the authors' arithmetic from that method's weights; each yields its losses under our names.
        small: options of the check of the losses.
        rounds: batches of one iteration, the same number of which warms up.
        warm_up: iterations that are not counted.
    """

    name: str
    build: Callable[[argparse.Namespace], tuple[Method, Batch]]
    authors: Callable[[Method, Batch, argparse.Namespace], Iterator[Losses]]
    small: Mapping[str, Any]
    rounds: int = 1
    warm_up: int = 2

    def main(self, parser: argparse.ArgumentParser, size: Sequence[int], width: int) -> None:
        """Check the losses, measure both sides in turn, print the ratios and write everything to `results/`."""
        parser.add_argument("--size", type=int, nargs=len(size), default=list(size), help="voxels along each axis")
        parser.add_argument("--width", type=int, default=width)
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--iterations", type=int, default=2, help="counted iterations of one process")
        parser.add_argument("--repetitions", type=int, default=2, help="processes of each side")
        parser.add_argument("--precision", default="auto", help="of our side: auto, 32 or bf16-mixed")
        parser.add_argument("--side", choices=["authors", "ours"], help=argparse.SUPPRESS)
        options = parser.parse_args()
        if options.side:
            print(json.dumps(self.measure(options)))
            return
        differences = self.check(options)
        results: dict[str, list[dict[str, Any]]] = {"authors": [], "ours": []}
        for _ in range(options.repetitions):
            for side, runs in results.items():
                runs.append(run(side, options))
                print(f"{side:8}", line(middle(runs[-1:])), flush=True)
        summary = {side: middle(runs) for side, runs in results.items()}
        ratios = {name: summary["authors"][name] / summary["ours"][name] for name in summary["ours"]}
        print(f"authors / ours: {ratios['wall_s']:.2f} wall, {ratios['cpu_s']:.2f} CPU, {ratios['peak_bytes']:.2f} memory")
        content = {
            "setting": {key: value for key, value in vars(options).items() if key != "side"},
            "machine": {
                "cpu": platform.machine() + " " + torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "date": date.today().isoformat(),
            },
            "loss_differences": differences,
            "summary": summary,
            "ratios": ratios,
            "runs": results,
        }
        name = f"{self.name}_{'x'.join(map(str, options.size))}_k{options.width}_{options.precision}.json"
        write_json(Path(__file__).parent / "results" / name, content)

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Seconds of wall and CPU of each counted iteration, losses of every batch, and the peak of memory of this process."""
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        method, batch = self.build(options)
        count = self.rounds * (options.iterations + self.warm_up)
        times: list[tuple[float, float]] = []
        losses: list[Losses] = []

        def tick(values: Mapping[str, float]) -> None:
            times.append((time.perf_counter(), time.process_time()))
            losses.append(dict(values))

        if options.side == "authors":
            iterations = self.authors(method, batch, options)
            del method
            for _ in range(count):
                tick(next(iterations))
        else:
            ours(method, OneBatch(batch, count), options.precision, tick)
        ends = times[self.warm_up * self.rounds - 1 :: self.rounds]
        wall, cpu = ([b[n] - a[n] for a, b in pairwise(ends)] for n in (0, 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "losses": losses}

    def check(self, options: argparse.Namespace) -> list[float]:
        """Largest relative difference of any loss while the weights are equal, and after they were updated."""
        small = {"iterations": 0, "precision": "32", **self.small}
        authors, own = run("authors", options, **small)["losses"], run("ours", options, **small)["losses"]
        if [one.keys() for one in authors] != [one.keys() for one in own]:
            raise SystemExit(f"the two sides have other losses: {authors[0].keys() ^ own[0].keys()}")
        first, *later = (max(abs(a[n] - b[n]) / max(abs(a[n]), 1) for n in a) for a, b in zip(authors, own, strict=True))
        differences = [first, max(later)]
        print(
            f"losses differ by {first:.1e} from equal weights, then by {max(later):.1e} (relative; of losses below 1 absolute)",
            flush=True,
        )
        if first > 1e-5 or max(later) > 1e-3:
            raise SystemExit("the two sides do not compute the same training")
        return differences


class OneBatch:
    """The same batch, again and again."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """`count` times the batch; an epoch has no order here."""
        yield from [self.batch] * (self.count - start)


def ours(method: Method, batches: OneBatch, precision: str, tick: Callable[[Mapping[str, float]], None]) -> None:
    """Iterations through the package's training loop; stops before the checkpoint at its end."""

    class Enough(Exception):
        pass

    done = 0

    def report(status: Any) -> None:
        nonlocal done
        done += 1
        tick(status.values)
        if done == len(batches):
            raise Enough

    settings = TrainingSettings(epochs=1, precision=precision, checkpoint_minutes=10_000)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(method, batches, Path(folder), settings, report=report, device="cpu")
        except Enough:
            return


def run(side: str, options: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """`Comparison.measure` in a process of its own."""
    values = {**vars(options), **changes, "side": side}
    size = [str(n) for n in values.pop("size")]
    values.pop("repetitions")
    arguments = ["--size", *size, *(f"--{name}={value}" for name, value in values.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, sys.argv[0], *arguments]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(answer.splitlines()[-1])


def middle(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over all counted iterations."""
    seconds = {name: median(t for one in runs for t in one[name]) for name in ("wall_s", "cpu_s")}
    return seconds | {"peak_bytes": median(one["peak_bytes"] for one in runs)}


def line(one: dict[str, float]) -> str:
    return f"{one['wall_s']:7.2f} s wall {one['cpu_s']:7.2f} s CPU {one['peak_bytes'] / 1e9:6.2f} GB"
