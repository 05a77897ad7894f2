"""Single-stage distillation beside two plain runs of its networks, on real patients: seconds an iteration, peak memory, Dice.

    python benchmarks/single_stage_cost.py BRATS_FOLDER OUTPUT                       # 13 patients, two cores: 10 minutes
    python benchmarks/single_stage_cost.py BRATS_FOLDER OUTPUT --patch 128 --width 32 --stages 6 --spacing 1

The whole way from raw NIfTI to scores: the last five patients are held back for the test. `teacher` and `plain` are nnU-Net's
network for all sequences and for FLAIR and T1ce alone; `student` learns beside a teacher of its own, with Barlow Twins. Each
training is a process of its own, so that its peak of memory is its own; the time is that of the steps, without the reading of
patches, as the median over the epochs after the first. Dice after a hundred steps is proof that the way works, and no result.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from modistill.evaluation.papers import case_means
from modistill.evaluation.scores import read_scores
from modistill.files import read_json, write_json
from modistill.log import read_log
from modistill.tasks import Task, run_tasks

ARMS = ("teacher", "plain", "student")


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """Prepare, train three arms, predict and score."""
    out: Path = options.output
    spacing = [str(options.spacing)] * 3
    how = ("--recipe", "single_stage/student", "--spacing", *spacing, "--fractions", "1", "0", "0")
    yield Task("prepare", ("prepare", str(out / "train"), "-o", str(out / "prepared"), *how), out / "prepared" / "plan.json")
    patch = ", ".join([str(options.patch)] * 3)
    overrides = [
        f"data.spacing_mm=[{', '.join(spacing)}]",
        f"method.width={options.width}",
        f"method.stages={options.stages}",
        f"sampling.patch_size=[{patch}]",
        f"sampling.steps_per_epoch={options.steps}",
        f"training.epochs={options.epochs}",
        f"inference.window=[{patch}]",
        "inference.mirror=[]",
    ]
    for name in ARMS:
        run, cost = out / "runs" / name, out / f"{name}.json"
        words = ("train", f"single_stage/{name}", "--data", str(out / "prepared"), "-o", str(run), "--device", options.device)
        settings = tuple(word for override in overrides for word in ("--set", override))
        yield Task(f"train {name}", (*words, *settings), cost, resumes=run / "checkpoints" / "index.json", cost=cost)
        found, scores = out / "predictions" / name, out / "scores" / f"{name}.csv"
        seen = "flair,t1ce,t1,t2" if name == "teacher" else "flair,t1ce"
        predict = ("predict", "-i", str(out / "test"), "--model", str(run), "--only", seen, "--device", options.device)
        yield Task(f"predict {name}", (*predict, "--continue", "-o", str(found)), found / ".done")
        score = ("evaluate", str(found), "--reference", str(out / "test"), "--run", name, "-o", str(scores))
        yield Task(f"score {name}", score, scores.with_suffix(".json"))


def measured(out: Path, name: str) -> dict[str, float]:
    """Of one arm."""
    rows = {row.epoch: row.seconds for row in read_log(out / "runs" / name / "log.csv") if row.name.startswith("train/")}
    steps = max(row.step for row in read_log(out / "runs" / name / "log.csv")) / len(rows)
    means = case_means([read_scores(out / "scores" / f"{name}.csv")], "dice")
    dice = {f"dice_{region}": float(cases.mean()) for region, cases in next(iter(means.values())).items()}
    later = [seconds for epoch, seconds in rows.items() if epoch] or list(rows.values())
    return {"seconds_an_iteration": median(later) / steps, "peak_bytes": read_json(out / f"{name}.json")["peak_bytes"], **dice}


def main() -> None:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patients", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--spacing", type=float, default=2.0, help="mm")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    folders = sorted(folder.resolve() for folder in options.patients.iterdir() if folder.is_dir())
    for part, some in {"train": folders[:-5], "test": folders[-5:]}.items():
        (options.output / part).mkdir(parents=True, exist_ok=True)
        for folder in some:
            link = options.output / part / folder.name
            if not link.exists():
                os.symlink(folder, link)
    run_tasks({task.name: task for task in tasks(options)}, on_task=lambda task, *_: print(task.name, flush=True))
    found = {name: measured(options.output, name) for name in ARMS}
    for name, numbers in found.items():
        dice = "  ".join(f"{key[5:]} {value:.3f}" for key, value in numbers.items() if key.startswith("dice_"))
        print(f"{name:8} {numbers['seconds_an_iteration']:7.3f} s  {numbers['peak_bytes'] / 1e9:5.2f} GB  Dice {dice}")
    both = found["teacher"]["seconds_an_iteration"] + found["plain"]["seconds_an_iteration"]
    print(f"student against both plain runs together: {found['student']['seconds_an_iteration'] / both:.2f} of the time")
    write_json(options.output / "single_stage_cost.json", {"options": {k: str(v) for k, v in vars(options).items()}, **found})


if __name__ == "__main__":
    main()
