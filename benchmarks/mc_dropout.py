"""Monte-Carlo dropout: what it saves to compute the part before the first dropout once, and that memory does not grow.

    python benchmarks/mc_dropout.py --size 96 96 96 --width 32 --passes 10

The two forms take turns in one process (CPU time, one thread); their answers must be equal to the bit. Memory is the peak of a
process of its own for each number of passes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from modistill.hardware import tune_allocator
from modistill.inference.sampling import MCDropout
from modistill.inference.windows import sample_windows
from modistill.networks.unet import UNet


def made(options: argparse.Namespace) -> tuple[UNet, torch.Tensor]:
    tune_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return UNet(3, 4, width=options.width).eval(), torch.randn(3, *options.size)


def mean(network: UNet, images: torch.Tensor, passes: int, *, once: bool) -> tuple[torch.Tensor, float]:
    """Mean probabilities, and the CPU seconds they took."""
    sampler = MCDropout(network, network, passes=passes)
    if not once:
        sampler.before_dropout = []
    begin = time.process_time()
    found = sample_windows(sampler, images, entropy=True)
    return found, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    network, images = made(options)
    if options.peak:
        mean(network, images, options.passes, once=True)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    mean(network, images, 2, once=False)  # warms up
    ratios = []
    for _ in range(options.repetitions):
        (plain, slow), (kept, fast) = (mean(network, images, options.passes, once=once) for once in (False, True))
        if not torch.equal(plain, kept):
            raise SystemExit("the two forms do not give the same bits")
        ratios.append(slow / fast)
        print(f"every pass whole {slow:6.2f} s CPU, part before dropout once {fast:6.2f} s: {slow / fast:.2f}x")
    peaks = {}
    for passes in (1, options.passes):
        words = ["--peak", "--passes", str(passes), "--width", str(options.width), "--size", *map(str, options.size)]
        peaks[passes] = int(subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True).stdout)
        print(f"{passes} passes: peak {peaks[passes] / 1e9:.2f} GB")
    content = {"setting": vars(options), "ratio": median(ratios), "peak_bytes": peaks, "torch": torch.__version__}
    (Path(__file__).parent / "results" / "mc_dropout.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
