"""The engine: what it refuses, what survives, and that stopping leaves no trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from modistill.data.batch import Batch
from modistill.errors import ModelError, TrainingStopped
from modistill.log import LogRow, read_log, write_log
from modistill.methods.base import Method, Turn
from modistill.training import Plateau, Status, TrainingSettings, fit
from samples import RandomBatches


class Line(Method):
    """y = w * mean(image): two players whose steps can be worked out by hand."""

    deployed = "first"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.first.weight)
        nn.init.ones_(self.second.weight)
        self.reads = {"first": ("t1",)}
        self.players = {name: lambda p: torch.optim.SGD(p, lr=0.5) for name in ("first", "second")}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        w, v = self.first.weight, self.second.weight
        yield "first", {"square": (w * v).square().sum()}  # d/dw = 2 w v^2 = 2, w becomes 1 - 0.5 * 2 = 0
        yield "second", {"distance": (v - w - 3).square().sum()}  # w is 0 already: d/dv = 2 (v - 3) = -4, v becomes 3

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        return images


LINE = RandomBatches(("t1",), ("t1",), count=1, size=(2, 2))


def settings(**arguments: object) -> TrainingSettings:
    return TrainingSettings(**{"epochs": 1, "precision": "32", "checkpoint_minutes": 60, **arguments})


def test_a_turn_sees_what_the_turn_before_has_learnt(tmp_path: Path) -> None:
    method = fit(Line(), LINE, tmp_path, settings())
    assert method.first.weight.item() == 0.0
    assert method.second.weight.item() == 3.0
    rows = {row.name: row.value for row in read_log(tmp_path / "log.csv")}
    assert rows == {"train/first/square": 1.0, "train/second/distance": 4.0}


def test_clipping_bounds_the_gradient_of_each_player(tmp_path: Path) -> None:
    method = fit(Line(), LINE, tmp_path, settings(clip_norm=1.0))
    assert method.first.weight.item() == pytest.approx(0.5, abs=1e-5)  # gradient 2 cut to 1


def test_plateau_lowers_the_rate_only_when_asked(tmp_path: Path) -> None:
    rates = []
    for plateau in (None, Plateau(factor=0.5, patience=0)):
        method, seen = Line(), []
        method.players = {"first": lambda p, seen=seen: seen.append(torch.optim.SGD(p, lr=0.5)) or seen[0]}
        method.losses = lambda batch, method=method: iter([("first", {"square": method.first.weight.square().sum()})])
        fit(method, LINE, tmp_path / str(plateau), settings(epochs=3, plateau=plateau), validate=lambda _: {"score": 1.0})
        rates.append(seen[0].param_groups[0]["lr"])
    assert rates == [0.5, 0.125]


def test_best_is_kept_ties_overwrite(tmp_path: Path) -> None:
    scores, kept = iter([0.2, 0.5, 0.5, 0.1]), []
    fit(
        Line(),
        LINE,
        tmp_path,
        settings(epochs=4),
        validate=lambda _: {"score": next(scores)},
        on_best=lambda method, score, epoch: kept.append((epoch, score)),
    )
    assert kept == [(0, 0.2), (1, 0.5), (2, 0.5)]


def test_report_tells_every_step_and_every_epoch(tmp_path: Path) -> None:
    told: list[Status] = []
    fit(Line(), replace(LINE, count=2), tmp_path, settings(epochs=2), report=told.append)
    assert [(status.epoch, status.batch) for status in told] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


class Broken(Line):
    def losses(self, batch: Batch) -> Iterator[Turn]:
        factor = float("nan") if batch.epoch == 2 else 1.0
        yield "first", {"square": factor * self.first.weight.square().sum()}


def test_nan_stops_the_run_and_names_term_step_and_case(tmp_path: Path) -> None:
    method = Broken()
    with pytest.raises(TrainingStopped, match=r"first/square is nan at step 2, epoch 2, cases case0.0 \(.*resume") as caught:
        fit(method, LINE, tmp_path, settings(epochs=5, checkpoint_minutes=0))
    assert caught.value.exit_code == 4
    assert torch.isfinite(method.first.weight).all()
    assert [row.epoch for row in read_log(tmp_path / "log.csv")] == [0, 1]


class Explosive(Line):
    def losses(self, batch: Batch) -> Iterator[Turn]:
        w = self.first.weight
        yield "first", {"root": (w - w.detach()).abs().sum().sqrt()}  # 0, with an infinite gradient


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="first/gradient is"):
        fit(Explosive(), LINE, tmp_path, settings())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    fit(Line(), replace(LINE, count=2), tmp_path, settings(epochs=2, checkpoint_minutes=0))
    return tmp_path


def resumed(folder: Path) -> Method:
    return fit(Line(), replace(LINE, count=2), folder, settings(epochs=2), resume=True)


def newest(folder: Path) -> list[Path]:
    index = json.loads((folder / "checkpoints" / "index.json").read_text())
    return [folder / "checkpoints" / entry["file"] for entry in index["newest_first"]]


@pytest.mark.parametrize("damage", ["cut", "bit", "zeros", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(
    trained: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = resumed(trained).second.weight.item()
    path = newest(trained)[0]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "bit":
        content[len(content) // 2] ^= 1
    else:
        content[200:300] = bytes(100)
    path.write_bytes(bytes(content))
    if damage == "gone":
        path.unlink()
    assert resumed(trained).second.weight.item() == whole
    assert "is damaged; trying the one before" in caplog.text


def test_without_a_sound_checkpoint_resuming_is_refused_never_a_fresh_start(trained: Path) -> None:
    for path in newest(trained):
        path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no sound checkpoint to resume from: all damaged"):
        resumed(trained)
    with pytest.raises(ModelError, match="none found"):
        resumed(trained / "elsewhere")


def test_two_generations_are_kept(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == sorted(
        ["index.json", *(path.name for path in newest(trained))]
    )
    assert len(newest(trained)) == 2


class Other(Line):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 1, bias=False)


def test_a_checkpoint_of_other_networks_is_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match=r"does not fit the method: .*size mismatch"):
        fit(Other(), LINE, trained, settings(), resume=True)


def test_a_full_disk_stops_the_training_and_keeps_the_checkpoint_before(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in newest(trained)}

    def full(content: object, place: Path) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingStopped, match=r"checkpoint cannot be written.*No space left on device"):
        fit(Line(), LINE, trained, settings(epochs=3), resume=True)
    assert {path.name: path.read_bytes() for path in newest(trained)} == before
    assert not list((trained / "checkpoints").glob("*.part*"))


def test_the_log_makes_a_round_trip_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    rows = [LogRow(0, 3, 1.5, "train/a/b", 0.1 + 0.2), LogRow(1, 6, 0.25, "validation/dice/ET", 1e-30)]
    write_log(tmp_path / "log.csv", rows)
    assert read_log(tmp_path / "log.csv") == rows
    (tmp_path / "log.csv").write_text("epoch,step,seconds,name,value\n1,2\n")
    with pytest.raises(Exception, match=r"log\.csv: damaged log"):
        read_log(tmp_path / "log.csv")


SCRIPT = """
    import sys, warnings
    warnings.simplefilter("ignore")
    from pathlib import Path
    from test_contract import make, noise, settings
    from modistill.training import TrainingSettings, fit
    from safetensors.torch import save_file

    folder = Path(sys.argv[1])
    method = make("had_net")
    how = TrainingSettings(epochs=4, precision="32", checkpoint_minutes=0)
    fit(method, noise(method, count=3), folder, how, resume=(folder / "checkpoints" / "index.json").exists(),
        report=lambda status: print(status.epoch, status.batch, flush=True))
    save_file(method.state_dict(), folder / "final.safetensors")
"""


def start(folder: Path, script: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script), str(folder)], env=environment, stdout=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen[str], lines: int, how: signal.Signals) -> int:
    with process:
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(how)
        process.communicate(timeout=60)
    return process.returncode


def run(folder: Path, script: Path) -> bytes:
    with start(folder, script) as process:
        process.communicate(timeout=120)
    return (folder / "final.safetensors").read_bytes()


@pytest.mark.slow
def test_kill_at_twenty_random_moments_then_resume_gives_the_same_tensors(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    whole = run(tmp_path / "whole", script)
    for moment in range(20):
        folder = tmp_path / f"killed{moment}"
        with start(folder, script) as process:
            process.stdout.readline()
            time.sleep(0.03 * moment)
            process.kill()
        assert run(folder, script) == whole


def test_sigkill_and_sigterm_then_resume_give_the_same_tensors(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    assert kill_after(start(tmp_path / "killed", script), 5, signal.SIGKILL) == -signal.SIGKILL
    assert kill_after(start(tmp_path / "killed", script), 3, signal.SIGTERM) == 128 + signal.SIGTERM
    assert run(tmp_path / "killed", script) == run(tmp_path / "whole", script)
