"""Teacher, pre-trained student, control and HAD-Net on phantom patients, over several seeds; in pieces that can be resumed.

    python benchmarks/phantom_experiment.py --folder build/phantom --minutes 9     # again and again until it says done

Each piece ends by itself after `--minutes`: the training that runs then writes a checkpoint and goes on in the next piece, bit
for bit. Every arm of a seed sees the same patients, order and budget; the control goes on from the same pre-trained student as
HAD-Net with the same optimiser, for as many epochs. Test patients have no t1ce file (the teacher gets the same patients with
it).
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

console = Console(stderr=True)


class Piece:
    """Runs commands until the time is over."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + minutes * 60

    def run(self, *command: object) -> None:
        """One `modistill` command; SIGTERM when the time is over, which a training answers with a checkpoint."""
        words = [str(word) for word in command]
        console.print(f"[dim]modistill {' '.join(words)}[/]", highlight=False)
        process = subprocess.Popen([Path(sys.executable).parent / "modistill", *words])
        try:
            code = process.wait(timeout=max(1.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            console.print("time is over; run the same command again to go on")
            raise SystemExit(0) from None
        if code:
            raise SystemExit(code)


def train(piece: Piece, arm: str, data: Path, run: Path, options: list[str], device: str) -> None:
    """Train an arm, or go on with it, or leave it if it is finished."""
    if (run / "finished").exists():
        return
    resume = ["--resume"] if (run / "checkpoints" / "index.json").exists() else []
    piece.run("train", arm, "--data", data, "-o", run, "--device", device, *options, *resume)
    (run / "finished").touch()


def score(piece: Piece, run: Path, patients: Path, reference: Path, folder: Path, name: str, device: str) -> Path:
    """Predict the test patients with a run and score them."""
    predictions, scores = folder / "predictions" / name, folder / "scores" / f"{name}.csv"
    if not scores.exists():
        piece.run("predict", "-i", patients, "-o", predictions, "--model", run, "--device", device, "--overwrite")
        piece.run("evaluate", predictions, "--reference", reference, "--run", name, "-o", scores)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-cases", type=int, default=24)
    parser.add_argument("--test-cases", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 64, 48))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every recipe")
    parser.add_argument("--epochs", type=int, nargs=2, default=(30, 15), help="of pre-training, and of control and HAD-Net")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    piece, folder, shape = Piece(chosen.minutes), chosen.folder, [str(n) for n in chosen.shape]
    size = f"data.size=[{','.join(shape)}]"

    train_patients, full, without = folder / "patients", folder / "test_full", folder / "test_without_t1ce"
    piece.run("phantom", "-o", train_patients, "--cases", chosen.train_cases, "--shape", *shape, "--seed", 11)
    piece.run("phantom", "-o", full, "--cases", chosen.test_cases, "--shape", *shape, "--seed", 12)
    piece.run("phantom", "-o", without, "--cases", chosen.test_cases, "--shape", *shape, "--seed", 12, "--without", "t1ce")
    tables: dict[str, list[Path]] = {arm: [] for arm in ("control", "had_net", "student", "teacher")}
    for seed in chosen.seeds:
        prepared, runs = folder / f"prepared{seed}", folder / f"runs{seed}"
        split = ["--fractions", "0.85", "0.15", "0", "--seed", seed]
        if not (prepared / "plan.json").exists():
            piece.run("prepare", train_patients, "-o", prepared, "--recipe", "demo/teacher", "--size", *shape, *split)
        for arm in ("teacher", "student", "control", "had_net"):
            epochs = chosen.epochs[arm in {"control", "had_net"}]
            overrides = [size, f"training.seed={seed}", f"training.epochs={epochs}", *chosen.set]
            options = [word for override in overrides for word in ("--set", override)]
            train(piece, f"demo/{arm}", prepared, runs / arm, options, chosen.device)
        for arm, scores in tables.items():
            patients = full if arm == "teacher" else without
            scores.append(score(piece, runs / arm, patients, full, folder, f"{arm}/{seed}", chosen.device))
    files = [path for paths in tables.values() for path in paths]
    piece.run("compare", *files, "--control", "control", "-o", folder / "comparison.md")
    console.print("[bold]done[/]")


if __name__ == "__main__":
    main()
