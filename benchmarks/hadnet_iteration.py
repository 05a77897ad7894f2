"""One HAD-Net iteration (teacher, student, critic; both updates): this package against the authors' arithmetic, in one run.

    python benchmarks/hadnet_iteration.py                                          # 96^3, width 16, one thread: minutes
    python benchmarks/hadnet_iteration.py --size 160 192 160 --width 32 --threads 2 --repetitions 1

The authors' arithmetic is written here from its description: plain layers in NCDHW and single precision, upsampled maps and
concatenations made, the critic's gradients computed in the student's turn and thrown away, the critic's pass on the student
made twice, the default memory allocator. Ours is `modistill.methods.had_net` trained by `modistill.training.fit`.

Every measurement is a process of its own, so that its peak of memory is its own; the two sides take turns. The first two
iterations of a process warm up and are not counted: a training has thousands of them.

Before anything is measured, both sides play two iterations with equal weights and no dropout: their losses must agree to 1e-5
while the weights are equal (single precision), and to 1e-3 after both were updated, since Adam turns the rounding of small
gradients into whole steps. Gradients are compared in `tests/networks`.
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
from collections.abc import Callable, Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.data.batch import Batch
from modistill.files import write_json
from modistill.methods.had_net import HADNet
from modistill.training import TrainingSettings, fit

WARM_UP = 2
MODALITIES, AVAILABLE = ("flair", "t1ce", "t1", "t2"), ("flair", "t1", "t2")
CLASS_WEIGHTS = (1.0, 59.4507, 23.3190, 71.8481)
TERMS = ("student/segmentation", "student/adversarial", "critic/on_teacher", "critic/on_student")


class PlainEncoder(nn.Module):
    """Dropout, then twice convolution, instance norm, LeakyReLU."""

    def __init__(self, into: int, middle: int, out: int, p: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(p)
        self.conv1, self.norm1 = nn.Conv3d(into, middle, 3, padding=1), nn.InstanceNorm3d(middle, affine=True)
        self.conv2, self.norm2 = nn.Conv3d(middle, out, 3, padding=1), nn.InstanceNorm3d(out, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = functional.leaky_relu(self.norm1(self.conv1(self.dropout(x))), inplace=True)
        return functional.leaky_relu(self.norm2(self.conv2(x)), inplace=True)


class PlainDecoder(nn.Module):
    """Upsampling, dropout of both inputs, two convolutions added; norm, LeakyReLU, and once more."""

    def __init__(self, into: int, out: int, p: float) -> None:
        super().__init__()
        self.skip_dropout, self.deep_dropout = nn.Dropout3d(p), nn.Dropout3d(p)
        self.skip = nn.Conv3d(into, into, 3, padding=1, bias=False)
        self.deep, self.norm1 = nn.Conv3d(into, into, 3, padding=1), nn.InstanceNorm3d(into, affine=True)
        self.conv2, self.norm2 = nn.Conv3d(into, out, 3, padding=1), nn.InstanceNorm3d(out, affine=True)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        """See the class."""
        deep = functional.interpolate(deep, skip.shape[2:])
        x = self.skip(self.skip_dropout(skip)) + self.deep(self.deep_dropout(deep))
        x = functional.leaky_relu(self.norm1(x), inplace=True)
        return functional.leaky_relu(self.norm2(self.conv2(x)), inplace=True)


class PlainUNet(nn.Module):
    """Logits, and the pairs of maps that the critic sees."""

    def __init__(self, modalities: int, k: int, p: float) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = (
            PlainEncoder(modalities, k, k, 0),
            PlainEncoder(k, 2 * k, 2 * k, p),
            PlainEncoder(2 * k, 4 * k, 4 * k, p),
        )
        self.d4, self.c5 = PlainEncoder(4 * k, 8 * k, 8 * k, p), PlainEncoder(8 * k, 16 * k, 8 * k, p)
        self.u4, self.u3 = PlainDecoder(8 * k, 4 * k, p), PlainDecoder(4 * k, 2 * k, p)
        self.u2, self.u1 = PlainDecoder(2 * k, k, p), PlainDecoder(k, k, p)
        self.out = nn.Conv3d(k, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """See the class."""
        d1 = self.d1(x)
        d2 = self.d2(functional.max_pool3d(d1, 2))
        d3 = self.d3(functional.max_pool3d(d2, 2))
        d4 = self.d4(functional.max_pool3d(d3, 2))
        c5 = self.c5(functional.max_pool3d(d4, 2))
        u4 = self.u4(d4, c5)
        u3 = self.u3(d3, u4)
        u1 = self.u1(d1, self.u2(d2, u3))
        return self.out(u1), [(d2, u3), (d3, u4), (d4, c5)]


class PlainCritic(nn.Module):
    """Patch logits; everything it sees is concatenated."""

    def __init__(self, into: int, k: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(into, 4 * k, 4, 2, 1), nn.Conv3d(8 * k, 8 * k, 4, 2, 1)
        self.conv3, self.conv4 = nn.Conv3d(16 * k, 16 * k, 4, 2, 1), nn.Conv3d(32 * k, 32 * k, 4, 2, 1)
        self.out = nn.Conv3d(32 * k, 1, 4, 1, 1, bias=False)

    def forward(self, logits: Tensor, images: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """See the class."""
        x = functional.leaky_relu(self.conv1(torch.cat([logits, images], 1)), 0.2, inplace=True)
        for conv, (encoder, decoder) in zip((self.conv2, self.conv3, self.conv4), pairs, strict=True):
            x = torch.cat([x, encoder, functional.interpolate(decoder, encoder.shape[2:])], 1)
            x = functional.leaky_relu(functional.instance_norm(conv(x)), 0.2, inplace=True)
        return self.out(x)


def authors_iterations(method: HADNet, batch: Batch, width: int, dropout: float) -> Iterator[dict[str, float]]:
    """Iterations in the authors' arithmetic, from the weights of `method`; each yields its losses."""
    teacher, student = PlainUNet(4, width, dropout).requires_grad_(False), PlainUNet(3, width, dropout)
    critic = PlainCritic(7, width)
    for plain, ours in ((teacher, method.teacher), (student, method.student), (critic, method.critic)):
        plain.load_state_dict(ours.state_dict())
    of_student, of_critic = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (student, critic))
    images, labels, weights = batch.available, batch.labels, torch.tensor(CLASS_WEIGHTS)
    while True:
        with torch.no_grad():
            t, f_t = teacher(batch.all)
        s, f_s = student(images)
        segmentation = functional.cross_entropy(s, labels, weights)
        adversarial = 0.2 * (critic(s, images, f_s) - 1).square().mean()
        of_student.zero_grad()
        (segmentation + adversarial).backward()
        of_student.step()

        of_critic.zero_grad()
        on_teacher = (critic(t, images, f_t) - 1).square().mean()
        on_student = critic(s.detach(), images, [(a.detach(), b.detach()) for a, b in f_s]).square().mean()
        (on_teacher + on_student).backward()
        of_critic.step()
        losses = (segmentation, adversarial, on_teacher, on_student)
        yield {name: loss.item() for name, loss in zip(TERMS, losses, strict=True)}


class OneBatch:
    """The same batch, again and again."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """`count` times the batch; an epoch has no order here."""
        yield from [self.batch] * (self.count - start)


def made_batch(size: tuple[int, ...]) -> Batch:
    labels = torch.randint(4, (1, *size))
    images = torch.randn(1, 4, *size) + labels[:, None]
    return Batch(images, labels, torch.ones(1, 4, dtype=torch.bool), MODALITIES, AVAILABLE, ("made",))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of wall and CPU of each counted iteration, losses of all, and the peak of memory of this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch = made_batch(tuple(options.size))
    shape = {"width": options.width, "dropout": options.dropout}
    method = HADNet(MODALITIES, AVAILABLE, class_weights=CLASS_WEIGHTS, critic_rests_above=1.0, **shape)
    times: list[tuple[float, float]] = []
    losses: list[dict[str, float]] = []

    def tick(values: dict[str, float]) -> None:
        times.append((time.perf_counter(), time.process_time()))
        losses.append(dict(values))

    count = options.iterations + WARM_UP
    if options.side == "authors":
        iterations = authors_iterations(method, batch, **shape)
        del method
        for _ in range(count):
            tick(next(iterations))
    else:
        ours(method, OneBatch(batch, count), options.precision, tick)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall, cpu = ([b[n] - a[n] for a, b in pairwise(times[WARM_UP - 1 :])] for n in (0, 1))
    return {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "losses": losses}


def ours(method: HADNet, batches: OneBatch, precision: str, tick: Callable[[dict[str, float]], None]) -> None:
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
    """`measure` in a process of its own."""
    values = {**vars(options), **changes, "side": side}
    size = [str(n) for n in values["size"]]
    names = ("width", "threads", "iterations", "dropout", "precision", "side")
    arguments = ["--size", *size, *(f"--{name}={values[name]}" for name in names)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, *arguments]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(answer.splitlines()[-1])


def check(options: argparse.Namespace) -> list[float]:
    """Largest relative difference of any loss at each of two iterations, equal weights at the first, no dropout."""
    small = {"size": [48, 48, 48], "width": 8, "dropout": 0.0, "iterations": 0, "precision": "32"}
    authors, own = run("authors", options, **small)["losses"], run("ours", options, **small)["losses"]
    differences = [max(abs(a[n] - b[n]) / abs(a[n]) for n in TERMS) for a, b in zip(authors, own, strict=True)]
    print("losses differ by", ", ".join(f"{difference:.1e}" for difference in differences), "(relative; iterations 1 and 2)")
    if differences[0] > 1e-5 or max(differences) > 1e-3:
        raise SystemExit("the two sides do not compute the same training")
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[96, 96, 96], help="voxels along each axis")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=2, help="counted iterations of one process")
    parser.add_argument("--repetitions", type=int, default=2, help="processes of each side")
    parser.add_argument("--precision", default="auto", help="of our side: auto, 32 or bf16-mixed")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--side", choices=["authors", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    differences = check(options)
    results: dict[str, list[dict[str, Any]]] = {"authors": [], "ours": []}
    for _ in range(options.repetitions):
        for side, runs in results.items():
            runs.append(run(side, options))
            print(f"{side:8}", line(middle(runs[-1:])))
    summary = {side: middle(runs) for side, runs in results.items()}
    ratios = {name: summary["authors"][name] / summary["ours"][name] for name in summary["ours"]}
    print(f"authors / ours: {ratios['wall_s']:.2f} wall, {ratios['cpu_s']:.2f} CPU, {ratios['peak_bytes']:.2f} memory")
    setting = {key: value for key, value in vars(options).items() if key != "side"}
    machine = {
        "cpu": platform.machine() + " " + torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    content = {"setting": setting, "machine": machine, "loss_differences": differences, "summary": summary, "ratios": ratios}
    name = f"hadnet_iteration_{'x'.join(map(str, options.size))}_k{options.width}_{options.precision}.json"
    write_json(Path(__file__).parent / "results" / name, content | {"runs": results})


def middle(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over all counted iterations."""
    seconds = {name: median(t for one in runs for t in one[name]) for name in ("wall_s", "cpu_s")}
    return seconds | {"peak_bytes": median(one["peak_bytes"] for one in runs)}


def line(one: dict[str, float]) -> str:
    return f"{one['wall_s']:7.2f} s wall {one['cpu_s']:7.2f} s CPU {one['peak_bytes'] / 1e9:6.2f} GB"


if __name__ == "__main__":
    main()
