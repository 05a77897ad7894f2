"""Monte-Carlo dropout: what it saves to compute the part before the first dropout once, and that memory does not grow.

    python benchmarks/mc_dropout.py --size 96 96 96 --width 32 --passes 10
    python benchmarks/mc_dropout.py --case build/mc --passes 100 --device auto

The two forms take turns in one process (CPU time, one thread); their answers must be equal to the bit. Memory is the peak of a
process of its own for each number of passes.

With `--case FOLDER` whole commands are measured instead: `modistill predict --mc-dropout N --uncertainty` of the paper's
network (160x192x160, width 32, hardly trained) for one phantom of 240x240x155 voxels, from the files to the maps, with one pass
and with many. Naive is so many commands of one pass.
"""

from __future__ import annotations

import argparse
import json
import os
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


def command(*words: object) -> tuple[float, float, int]:
    """Run `modistill` in a process of its own: seconds on the clock, on the CPUs, and its peak of memory in bytes."""
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", "from modistill.cli import main; main()", *map(str, words)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"modistill {' '.join(map(str, words))} failed")
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def whole_case(folder: Path, passes: int, device: str) -> dict[str, object]:
    """One case from its files to its maps, with one pass, with ten and with many."""
    if not (folder / "run" / "model.safetensors").exists():
        command("phantom", "-o", folder / "patients", "--cases", 2, "--shape", 240, 240, 155, "--seed", 1)
        command("prepare", folder / "patients", "-o", folder / "prepared", "--recipe", "brats/student", "--fractions", 1, 0, 0)
        short = ("--set", "training.epochs=1")
        command("train", "brats/student", "--data", folder / "prepared", "-o", folder / "run", "--device", device, *short)
    patient = min((folder / "patients").glob("*/"))
    found = {}
    for count in (1, 10, passes):
        how = ("--mc-dropout", count, "--uncertainty", "--overwrite", "--device", device)
        out = folder / f"passes{count}"
        seconds, cpu, peak = command("predict", "-i", patient, "-o", out, "--model", folder / "run", *how)
        found[count] = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_bytes": peak}
        print(f"{count} passes: {seconds:.0f} s, {cpu:.0f} s CPU, peak {peak / 1e9:.2f} GB")
    one, many = found[1], found[passes]
    ratio = passes * one["cpu_seconds"] / many["cpu_seconds"]
    print(f"{passes} commands of one pass would take {passes * one['cpu_seconds']:.0f} s CPU: {ratio:.1f} times as long")
    threads = torch.get_num_threads()
    return {"voxels": [240, 240, 155], "device": device, "threads": threads, "passes": found, "ratio_to_naive": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--case", type=Path, metavar="FOLDER", help="measure whole commands, in this folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    if options.case:
        content = whole_case(options.case, options.passes, options.device)
        (results / f"mc_dropout_case_{options.device}.json").write_text(json.dumps(content, indent=1) + "\n")
        return
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
    setting = {name: getattr(options, name) for name in ("size", "width", "passes", "repetitions")}
    content = {"setting": setting, "ratio": median(ratios), "peak_bytes": peaks, "torch": torch.__version__}
    (results / "mc_dropout.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
