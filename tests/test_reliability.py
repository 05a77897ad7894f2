"""What can go wrong while people work, through the real command line: one line, an exit code, and nothing half-written.

The faults of single files, headers, geometries, labels and scores are tested beside the code that finds them;
`docs/reliability.md` names the test of every fault.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from command_line import run_main
from modistill import weights
from modistill.errors import FileError, TrainingStopped
from modistill.files import parse_yaml, read_json, require_writable, run_lock, sha256, write_json
from modistill.inference.predictor import Predictor
from modistill.methods.base import Method
from modistill.phantom.cohort import write_cohort
from modistill.training import TrainingSettings, fit
from samples import RandomBatches

SMALL = {"training.epochs": 1, "method.width": 2, "data.size": "[32, 32, 32]", "training.precision": "'32'"}
Cli = Callable[..., tuple[int, str]]


def options(**changes: object) -> list[str]:
    """`--set` for a network that trains in a second; `method__lr=1` sets `method.lr`."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command; returns its exit code and what it said on stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = run_main(*arguments)
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return code, said

    return call


def the_error(said: str) -> str:
    """The one line that names the error."""
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients, prepared, and a student trained on them for one epoch."""
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root / "patients", 3, seed=3, shape=(32, 32, 32), workers=1)
    size = ("--size", 32, 32, 32, "--fractions", 0.7, 0.3, 0)
    assert run_main("prepare", root / "patients", "-o", root / "prepared", "-r", "demo/student", *size) == 0
    assert run_main("train", "demo/student", "-d", root / "prepared", "-o", root / "student", *options()) == 0
    return root


@pytest.fixture
def trained(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be harmed."""
    return Path(shutil.copytree(cohort / "student", tmp_path / "student"))


def training(cohort: Path, output: Path, *more: object) -> list[object]:
    return ["train", "demo/student", "-d", cohort / "prepared", "-o", output, "--device", "cpu", *more]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@contextlib.contextmanager
def disk_of(bytes_: int) -> Iterator[None]:
    """No file can grow beyond this, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--wrong"], "error: No such option: --wrong (see modistill train --help)"),
        (["predictt"], "error: No such command 'predictt'"),
        (["phantom"], "error: Missing option '-o' / '--out' (see modistill phantom --help)"),
        (["phantom", "-o", "x", "--cases", "two"], "error: Invalid value for '--cases'"),
        (["inspect"], "error: Missing argument"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli: Cli, arguments: list[str], message: str) -> None:
    code, said = cli(*arguments)
    assert (code, said.count("\n")) == (2, 1)
    assert said.lower().startswith(message.lower())
    assert said.endswith("--help)\n")


def test_no_argument_shows_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_main() == 0
    assert "predict" in capfd.readouterr().out


def test_debug_shows_where_it_happened(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file or folder"):
        run_main("inspect", tmp_path / "nowhere", "--debug")


@pytest.mark.parametrize("command", ["evaluate", "inspect", "compare", "picture"])
def test_what_could_not_be_written_is_refused_before_the_work(cli: Cli, cohort: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    place, patients = tmp_path / "file" / "result.csv", cohort / "patients"
    arguments = {
        "evaluate": (patients, "-r", patients, "-o", place),
        "inspect": (patients, "--json", place),
        "compare": (tmp_path / "scores.csv", "--control", "a", "-o", place),
        "picture": (patients, patients, "-o", place),
    }
    code, said = cli(command, *arguments[command])
    assert code == 2
    assert the_error(said).endswith("file is no folder (choose another place)")
    with pytest.raises(FileError, match="is a folder"):
        require_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --------------------------------------------------------------------------- bad cases


def test_a_training_case_without_usable_labels_costs_only_itself(cli: Cli, cohort: Path, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(cohort / "patients", tmp_path / "raw"))
    names = sorted(path.name for path in raw.iterdir() if path.is_dir())
    (absent,) = (raw / names[0]).glob("*seg*")
    absent.unlink()
    (cut,) = (raw / names[1]).glob("*seg*")
    cut.write_bytes(cut.read_bytes()[:-20])
    how = ("--available", "t1,t2,flair", "--fractions", 1, 0, 0, "--workers", 1)
    code = run_main("prepare", raw, "-o", tmp_path / "prepared", *how)
    assert code == 3
    assert [path.name for path in (tmp_path / "prepared" / "cases").iterdir()] == [names[2]]
    faults = run_main("inspect", raw, "--json", tmp_path / "found.json", "--workers", 1)
    assert faults == 3
    found = {fault["case"]: fault for row in read_json(tmp_path / "found.json")["cases"] for fault in row["faults"]}
    assert "checksum" in found[names[1]]["reason"] or "truncated" in found[names[1]]["reason"]
    assert found[names[1]]["file"] == str(cut)
    assert found[names[1]]["remedy"]


# --------------------------------------------------------------------------- the run folder


def test_one_training_at_a_time_in_a_run_folder(cli: Cli, cohort: Path, trained: Path) -> None:
    before = content(trained)
    with run_lock(trained):
        code, said = cli(*training(cohort, trained, "--resume", *options()))
    assert code == 2
    assert the_error(said) == f"error: {trained}: in use by another process (wait for it or choose another folder)"
    assert content(trained) == before


def test_a_folder_with_something_else_is_left_alone(cli: Cli, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    code, said = cli(*training(cohort, tmp_path, *options()))
    assert (code, the_error(said)) == (2, f"error: {tmp_path}: holds other files, and no run (choose a new or empty folder)")
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


def test_resuming_nothing_makes_nothing(cli: Cli, cohort: Path, tmp_path: Path) -> None:
    code, said = cli(*training(cohort, tmp_path / "new", "--resume", *options()))
    assert (code, the_error(said)) == (
        2,
        f"error: {tmp_path / 'new'}: no run here to resume (leave out --resume to begin one)",
    )
    assert not (tmp_path / "new").exists()


def test_a_full_disk_stops_a_training_and_keeps_what_is_there(cli: Cli, cohort: Path, trained: Path, tmp_path: Path) -> None:
    model = (cohort / "student" / "model.safetensors").stat().st_size
    with disk_of(model // 2):
        code, said = cli(*training(cohort, tmp_path / "new", *options()))
    assert code == 4
    assert "new/model.safetensors: cannot be written" in the_error(said)
    assert not [name for name in content(tmp_path / "new") if "part" in name or "safetensors" in name]

    checkpoints = content(trained / "checkpoints")
    with disk_of(model * 3 // 2):  # the model fits, the checkpoint with its optimiser does not
        code, said = cli(*training(cohort, trained, "--resume", *options(training__epochs=2)))
    assert code == 4
    assert "the checkpoint cannot be written" in the_error(said)
    assert the_error(said).endswith("(free disk space, then go on with --resume)")
    assert content(trained / "checkpoints") == checkpoints
    assert cli(*training(cohort, trained, "--resume", *options(training__epochs=2)))[0] == 0


def test_a_full_disk_leaves_no_part_of_a_label_map(cli: Cli, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("predict", "-i", cohort / "patients", "-o", out, "-m", cohort / "student", "--device", "cpu")
    assert cli(*arguments)[0] == 0
    sizes = sorted(path.stat().st_size for path in out.glob("*.nii.gz"))
    with disk_of(sizes[0] - 1):
        code, said = cli(*arguments, "--overwrite")
    assert code == 2
    assert "cannot be written: File too large" in said
    assert not [name for name in content(out) if "part" in name]
    for path in out.glob("*.nii.gz"):
        assert path.stat().st_size in sizes


def test_a_loss_that_explodes_is_exit_code_4_and_leaves_no_ruined_weight(cli: Cli, cohort: Path, tmp_path: Path) -> None:
    code, said = cli(*training(cohort, tmp_path / "run", *options(method__lr=1e30, training__checkpoint_minutes=0)))
    assert code == 4
    assert "finite" in the_error(said) or "nan" in the_error(said)
    for path in (tmp_path / "run").rglob("*.pt"):
        method = torch.load(path, weights_only=True)["parts"]["method"]
        assert all(torch.isfinite(value).all() for value in method.values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


class Leaping(Method):
    """One weight, a finite gradient, and a step that takes the weight beyond all numbers."""

    deployed = "network"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.network.weight)
        self.reads = {"network": ("t1",)}
        self.players = {"network": lambda parameters: torch.optim.SGD(parameters, lr=rate)}

    def losses(self, batch):
        yield "network", {"square": 1e20 * self.network.weight.square().sum()}

    def segment(self, images):
        return images


def test_weights_beyond_all_numbers_replace_no_good_checkpoint(tmp_path: Path) -> None:
    batches = RandomBatches(("t1",), ("t1",), count=1, size=(2, 2))
    how = TrainingSettings(epochs=1, precision="32")
    fit(Leaping(1e-30), batches, tmp_path, how)
    before = content(tmp_path / "checkpoints")
    with pytest.raises(TrainingStopped, match=r"network.weight is not finite after step 1: no checkpoint is written \(lower"):
        fit(Leaping(1e30), batches, tmp_path, how)
    assert content(tmp_path / "checkpoints") == before


# --------------------------------------------------------------------------- signals


def test_sigterm_from_the_shell_ends_with_143_and_resuming_works(cohort: Path, tmp_path: Path) -> None:
    arguments = training(cohort, tmp_path / "run", *options(training__epochs=100000))
    program = [sys.executable, "-c", "from modistill.cli import main; main()", *map(str, arguments)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        assert "epoch 1/100000" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.strip().endswith(f"stopped after a complete step; --resume goes on in {tmp_path / 'run'}")
    assert run_main(*training(cohort, tmp_path / "run", "--resume", *options())) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_prediction_that_is_stopped_goes_on_with_continue(
    cli: Cli, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    arguments = ("predict", "-i", cohort / "patients", "-m", cohort / "student", "--device", "cpu", "-o")
    assert cli(*arguments, tmp_path / "whole")[0] == 0
    predict = Predictor.predict

    def stopped_in_the_second(self, case, **how):
        if case.id.endswith("1"):
            os.kill(os.getpid(), number)
        return predict(self, case, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stopped_in_the_second)
        assert cli(*arguments, tmp_path / "out")[0] == code
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1
    assert cli(*arguments, tmp_path / "out", "--continue")[0] == 0
    for path in (tmp_path / "whole").glob("*.nii.gz"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# --------------------------------------------------------------------------- hostile and foreign files


class Evil:
    """Pickled, it asks the reader to make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.place),)


def evil_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(mark), protocol=2))


def evil_zip(path: Path, mark: Path) -> None:
    torch.save({"parts": Evil(mark), "state": {}}, path)


def foreign(path: Path, mark: Path) -> None:
    torch.save({"weights": torch.ones(1)}, path)


@pytest.mark.parametrize("make", [evil_pickle, evil_zip, foreign])
def test_a_checkpoint_runs_no_code(cli: Cli, cohort: Path, trained: Path, tmp_path: Path, make: Callable) -> None:
    index = trained / "checkpoints" / "index.json"
    entries = read_json(index)["newest_first"]
    path = trained / "checkpoints" / entries[0]["file"]
    make(path, tmp_path / "executed")
    write_json(index, {"newest_first": [{**entries[0], "sha256": sha256(path)}]})
    code, said = cli(*training(cohort, trained, "--resume", *options(training__epochs=2)))
    assert code == 2
    assert f"{path}: not a checkpoint of modistill" in the_error(said)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ['{"newest_first": [{}]}', '{"newest_first": 3}', "[" * 100000, ""])
def test_a_damaged_index_of_checkpoints_is_named(cli: Cli, cohort: Path, trained: Path, text: str) -> None:
    (trained / "checkpoints" / "index.json").write_text(text)
    code, said = cli(*training(cohort, trained, "--resume", *options(training__epochs=2)))
    assert code == 2
    assert "index.json: the index of the checkpoints is damaged (train again" in the_error(said)


def test_a_pickle_in_the_name_of_a_model_runs_no_code(cli: Cli, cohort: Path, trained: Path, tmp_path: Path) -> None:
    evil_pickle(trained / "model.safetensors", tmp_path / "executed")
    code, said = cli("predict", "-i", cohort / "patients", "-o", tmp_path / "out", "-m", trained)
    assert code == 2
    assert f"{trained / 'model.safetensors'}: damaged" in the_error(said)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def rewrite(model: Path, change: Callable[[dict], object]) -> None:
    """Write a model with another card."""
    with safe_open(model, framework="pt") as opened:
        card = json.loads(opened.metadata()["modistill"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    changed = change(card)
    save_file(tensors, model, {"modistill": changed if isinstance(changed, str) else json.dumps(card)})


def exchange_modalities(card: dict) -> None:
    for names in (card["reads"], card["method"]["modalities"], card["preprocessing"]["modalities"]):
        names[0], names[1] = names[1], names[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (exchange_modalities, "damaged: its weights and card do not match their digest"),
        (lambda card: card.update(format=99), "written in format 99, this version reads"),
        (lambda card: "[" * 100000, "damaged card"),
        (lambda card: "[]", "damaged card: it states no format"),
        (lambda card: "not JSON", "damaged card"),
    ],
)
def test_a_model_with_a_changed_card_is_refused(
    cli: Cli, cohort: Path, trained: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    rewrite(trained / "model.safetensors", change)
    code, said = cli("predict", "-i", cohort / "patients", "-o", tmp_path / "out", "-m", trained)
    assert code == 2
    assert f"model.safetensors: {message}" in the_error(said)
    assert not (tmp_path / "out").exists()


def test_a_model_of_format_1_still_loads(trained: Path) -> None:
    """Its digest covered the weights only."""
    tensors, _ = weights.load_weights(trained / "model.safetensors")
    rewrite(trained / "model.safetensors", lambda card: card.update(format=1, digest=weights._digest(tensors, {"format": 1})))
    again, card = weights.load_weights(trained / "model.safetensors")
    assert card["format"] == 1
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_weights_for_other_classes_are_refused(cli: Cli, cohort: Path, trained: Path, tmp_path: Path) -> None:
    tensors, card = weights.load_weights(trained / "model.safetensors")
    card.pop("digest")
    weights.save_weights(trained / "model.safetensors", tensors, {**card, "classes": ["background", "ED", "NCR", "ET"]})
    code, said = cli(*training(cohort, tmp_path / "run", "--start-from", f"network={trained}", *options()))
    assert code == 2
    assert "finds background, ED, NCR, ET, the prepared cases hold background, NCR, ED, ET (prepare" in the_error(said)
    assert not (tmp_path / "run").exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases (*name) are not allowed"),
        ("data: " + "[" * 20000, "nested too deeply"),
        ("data: !!python/object/apply:os.mkdir ['executed']\n", "could not determine a constructor"),
        ("data: [1, 2\n", "while parsing"),
        ("\x00", "special characters are not allowed"),
    ],
    ids=["bomb", "nested", "code", "cut", "binary"],
)
def test_a_hostile_recipe_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.yaml").write_text(text)
    code, said = cli("train", "evil.yaml", "-d", "prepared", "-o", "run")
    assert (code, said.count("\n")) == (2, 1)
    assert "error: evil.yaml: cannot be read: " in said
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["evil.yaml"]


def test_plain_yaml_is_what_it_says() -> None:
    assert parse_yaml("a: [1, 2.5, x]\nb: {c: null}") == {"a": [1, 2.5, "x"], "b": {"c": None}}


# --------------------------------------------------------------------------- the table


def test_every_test_in_the_table_exists() -> None:
    here = Path(__file__).parent
    table = (here.parent / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", table))
    assert len(named) > 60
    for file, function in sorted(named):
        assert f"\ndef {function}(" in (here / file).read_text(), f"docs/reliability.md: no {file}::{function}"
