"""Sliding windows against the network alone: time and memory, in one run.

    python benchmarks/inference.py [--device cpu] [--width 8] [--threads 1]

Time: within one prediction, the clock runs on the whole call and on the network's own part of it; the rest is what the windows
cost (cutting, softmax, mirroring, weighting, adding up). The goal is 5 %. The first call is not counted.

Memory: each row is a process of its own, which reports its largest resident set (on a GPU: its largest allocation) above that
after one small volume. The number of windows grows by the overlap alone, volume and window stay; the goal is that memory does
not grow with it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from modistill.hardware import pick_device, tune_allocator
from modistill.inference.windows import count_windows, predict_windows
from modistill.methods.supervised import Supervised

MODALITIES = ("flair", "t1", "t2")
SIZE = (144, 176, 144)  # a brain of BraTS, cropped


class Watched:
    """A network whose time is taken."""

    def __init__(self, width: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.method = Supervised(MODALITIES, width=width).eval().to(device)
        self.device, self.seconds, self.calls = device, 0.0, 0

    def __call__(self, patches: Tensor) -> Tensor:
        """Logits, and the clock runs meanwhile."""
        self.wait()
        begin = time.perf_counter()
        logits = self.method.segment(patches)
        self.wait()
        self.seconds += time.perf_counter() - begin
        self.calls += 1
        return logits

    def wait(self) -> None:
        """Until a GPU has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def cost(width: int, device: torch.device, window: tuple[int, int, int], **how: object) -> str:
    network, images = Watched(width, device), torch.randn(len(MODALITIES), *SIZE)
    predict_windows(network, images[:, :64, :64, :64], window=(48, 48, 48), device=device)  # imports, first kernels
    network.seconds, network.calls = 0.0, 0
    begin = time.perf_counter()
    predict_windows(network, images, window=window, device=device, **how)  # type: ignore[arg-type]
    network.wait()
    total = time.perf_counter() - begin
    extra = 100 * (total / network.seconds - 1)
    told = " ".join(f"{name}={value}" for name, value in how.items())
    edges = "x".join(map(str, window))
    return f"{edges:>12} {told:<14} {network.calls:4d} passes   network {network.seconds:7.2f} s   windows cost {extra:5.2f} %"


def memory(width: int, device: torch.device, overlap: float) -> str:
    window = (64, 64, 64)
    network, images = Watched(width, device), torch.randn(len(MODALITIES), *SIZE)
    predict_windows(network, images[:, :80, :64, :64], window=window, device=device)
    before = peak(device)
    predict_windows(network, images, window=window, overlap=overlap, device=device)
    count = count_windows(SIZE, window, overlap)
    return f"overlap {overlap:4.2f}   {count:4d} windows   {peak(device) - before:6.0f} MB more than one small volume needs"


def peak(device: torch.device) -> float:
    """The largest memory so far, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tune_allocator()
    device = pick_device(options.device)
    if options.memory is not None:
        print(memory(options.width, device, options.memory))
        return
    print(f"torch {torch.__version__}, {device}, {options.threads} threads, width {options.width}, volume {SIZE}")
    for window, how in (((96, 96, 96), {}), ((128, 128, 128), {}), ((96, 96, 96), {"mirror": (0,)})):
        print(cost(options.width, device, window, **how), flush=True)
    for overlap in (0.0, 0.25, 0.5):
        again = [sys.executable, __file__, "--memory", str(overlap), "--device", options.device, "--width", "4"]
        print(subprocess.run(again, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
