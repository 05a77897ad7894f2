"""The one loop that trains every method.

`fit` plays a method's turns over the batches, validates, and leaves a run folder from which the training can go on as if it had
never stopped: the randomness of a step depends on nothing but (seed, step, rank), that of a sample on nothing but (seed, epoch,
position), so a checkpoint needs no random states to be exact.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from modistill.checkpoints import Checkpoints
from modistill.data.batch import Batch
from modistill.distributed import average_gradients, leave, rank_mean
from modistill.errors import TrainingStopped
from modistill.hardware import SoundConvolutions, pick_device, pick_precision, tune_allocator
from modistill.log import LogRow, read_log, write_log
from modistill.methods.base import Method, Terms, Turn
from modistill.settings import Plateau, TrainingSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Batches", "Interrupted", "Plateau", "Status", "TrainingSettings", "fit", "play"]


class Batches(Protocol):
    """Where batches come from: `modistill.data.loading.Loader`, or anything that repeats itself for equal arguments."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This rank's batches of one epoch, from position `start` on."""


@dataclass
class Status:
    """Where a training stands, for whoever shows its progress.

    Attributes:
        epoch: epochs done, of `epochs`.
        batch: batches of the current epoch done, of `batches`.
        values: terms of the step just made or, at the end of an epoch (`batch` 0), all numbers of that epoch.
        best: best validation score so far.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    values: Mapping[str, float]
    best: float | None = None


class Interrupted(SystemExit):
    """Stopped by a signal after a complete step and a checkpoint; exit code 128 + signal number."""


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimisers."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def fit(
    method: Method,
    batches: Batches,
    folder: Path,
    settings: TrainingSettings,
    *,
    validate: Callable[[Method], Mapping[str, float]] | None = None,
    on_best: Callable[[Method, float, int], None] | None = None,
    report: Callable[[Status], None] | None = None,
    resume: bool = False,
    device: str = "auto",
    loggers: Sequence[Any] = (),
) -> Method:
    """Train a method and leave a run folder that can be resumed.

    Args:
        method: on the CPU, with its initial weights.
        batches: repeats itself for equal (epoch, start, rank, world).
        folder: receives `checkpoints/` and `log.csv`.
        settings: length and arithmetic.
        validate: numbers of one validation; "score" is the one that is maximised. Runs on rank 0.
        on_best: called (on rank 0) with the method, its score and the epoch whenever the score is at least the best so far;
            without `validate`, after the last epoch.
        report: called (on rank 0) after every step and at the end of every epoch.
        resume: go on from the newest sound checkpoint; without one, refuse.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        loggers: Lightning loggers that receive every row of the log.

    Returns:
        The trained method.

    Raises:
        TrainingStopped: a term, a gradient or a weight is not finite, or the disk is full; the last good checkpoint stays.
        ModelError: asked to resume without a sound checkpoint.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written first.
    """
    run = _Run(method, batches, folder, settings, device, loggers)
    run.validate, run.on_best, run.report = validate, on_best, report
    if resume:
        run.load()
    state = run.state
    with _signals() as caught:
        while state.epoch < settings.epochs:
            method.train()
            for batch in batches.batches(state.epoch, state.batch, run.fabric.global_rank, run.fabric.world_size):
                run.step(batch)
                if run.agreed(bool(caught)):
                    run.save()
                    raise Interrupted(128 + (caught[0] if caught else signal.SIGTERM))
                if run.agreed(run.due()):
                    run.save()
            run.end_epoch()
    run.save()
    return method


class _Run:
    """The parts of a running training and the four things that happen to them: load, step, end_epoch, save."""

    validate: Callable[[Method], Mapping[str, float]] | None
    on_best: Callable[[Method, float, int], None] | None
    report: Callable[[Status], None] | None

    def __init__(
        self,
        method: Method,
        batches: Batches,
        folder: Path,
        settings: TrainingSettings,
        device: str,
        loggers: Sequence[Any],
    ) -> None:
        tune_allocator()
        self.fabric = launch(settings, device, loggers)
        self.fabric.to_device(method)
        self.method, self.batches, self.folder, self.settings = method, batches, folder, settings
        if settings.compile:
            torch._dynamo.config.recompile_limit = 64  # blocks of all scales share their code, and each needs a version of it
            for block in _blocks(method):
                block.compile()  # block by block: methods ask networks for their features, not only for their output
        self.players = {name: list(method.get_submodule(name).parameters()) for name in method.players}
        self.optimizers = {
            name: self.fabric.setup_optimizers(method.players[name](parameters)) for name, parameters in self.players.items()
        }
        self.schedules = _schedules(self.optimizers, settings)
        self.parts: dict[str, Any] = {"method": method}
        self.parts |= {f"optimizer/{name}": optimizer for name, optimizer in self.optimizers.items()}
        self.parts |= {f"schedule/{name}": schedule for name, schedule in self.schedules.items()}
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.state = _State()
        self.rows: list[LogRow] = []
        self.saved = time.monotonic()

    def load(self) -> None:
        """Stand where the newest sound checkpoint stood."""
        for name, value in self.checkpoints.load(self.parts).items():
            setattr(self.state, name, value)
        self.rows = [row for row in read_log(self.folder / "log.csv") if row.epoch < self.state.epoch]

    def save(self) -> None:
        """Write a checkpoint (rank 0), the others wait."""
        if self.fabric.is_global_zero:
            self.checkpoints.save(self.parts, asdict(self.state))
        self.fabric.barrier()
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that another one is due."""
        return time.monotonic() - self.saved >= self.settings.checkpoint_minutes * 60

    def agreed(self, wish: bool) -> bool:
        """Whether any rank has this wish; all ranks get the same answer."""
        return rank_mean(torch.tensor(float(wish), device=self.fabric.device)) > 0

    def step(self, batch: Batch) -> None:
        """Play one batch: every turn updates its player before the method goes on."""
        begin, state = time.monotonic(), self.state
        torch.manual_seed(_step_seed(self.settings.seed, state.step, self.fabric.global_rank))
        values: dict[str, float] = {}
        for player, terms in play(self.method, batch.to(self.fabric.device), self.fabric.autocast):
            values |= self.turn(player, terms, batch)
        state.step, state.batch, state.seconds = state.step + 1, state.batch + 1, state.seconds + time.monotonic() - begin
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
            state.counts[name] = state.counts.get(name, 0) + 1
        self.tell(values)

    def turn(self, player: str, terms: Terms, batch: Batch) -> dict[str, float]:
        """Update one player from its terms, and nobody else. Returns the terms' values."""
        optimizer, parameters = self.optimizers[player], self.players[player]
        optimizer.zero_grad()
        self.fabric.backward(torch.stack(list(terms.values())).sum(), inputs=parameters)
        average_gradients(parameters)
        norm = _gradient_norm(parameters, self.settings.clip_norm)
        watched = [*terms.values(), norm]
        numbers = torch.stack([value.detach().float() for value in watched]).tolist()  # the only wait for a GPU in a turn
        names = [f"{player}/{name}" for name in terms]
        _require_finite(dict(zip([*names, f"{player}/gradient"], numbers, strict=True)), self.state, batch)
        optimizer.step()
        optimizer.zero_grad()  # gradients are not kept while others take their turns
        return dict(zip(names, numbers, strict=False))

    def end_epoch(self) -> None:
        """Log the epoch's means, validate, keep the best, go to the next epoch."""
        state, settings = self.state, self.settings
        rows = [
            LogRow(state.epoch, state.step, state.seconds, f"train/{name}", state.sums[name] / state.counts[name])
            for name in state.sums
        ]
        last = state.epoch + 1 == settings.epochs
        if self.validate is not None and (last or (state.epoch + 1) % settings.validate_every == 0):
            rows += self.validated(self.validate)
        elif self.validate is None and last and self.on_best is not None and self.fabric.is_global_zero:
            self.on_best(self.method, float("nan"), state.epoch)
        self.rows += rows
        state.epoch, state.batch, state.sums, state.counts, state.seconds = state.epoch + 1, 0, {}, {}, 0.0
        if self.fabric.is_global_zero:
            write_log(self.folder / "log.csv", self.rows)
            self.fabric.log_dict({row.name: row.value for row in rows}, step=state.step)
        self.tell({row.name: row.value for row in rows})

    def validated(self, validate: Callable[[Method], Mapping[str, float]]) -> list[LogRow]:
        """Validate on rank 0; every rank learns the score."""
        begin, numbers = time.monotonic(), {"score": 0.0}
        if self.fabric.is_global_zero:
            self.method.eval()
            with torch.inference_mode(), self.fabric.autocast():
                numbers = dict(validate(self.method))
            self.method.train()
        score = numbers["score"]
        if self.fabric.world_size > 1:
            score = rank_mean(torch.tensor(score, device=self.fabric.device)) * self.fabric.world_size
        for schedule in self.schedules.values():
            schedule.step(score)
        if self.state.best is None or score >= self.state.best:
            self.state.best = score
            if self.on_best is not None and self.fabric.is_global_zero:
                self.on_best(self.method, score, self.state.epoch)
        seconds = time.monotonic() - begin
        return [LogRow(self.state.epoch, self.state.step, seconds, f"validation/{k}", v) for k, v in numbers.items()]

    def tell(self, values: Mapping[str, float]) -> None:
        """Show where the training stands."""
        if self.report is not None and self.fabric.is_global_zero:
            state = self.state
            self.report(Status(state.epoch, self.settings.epochs, state.batch, len(self.batches), values, state.best))


def play(method: Method, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[Turn]:
    """The turns of a method over one batch, each computed under `autocast`.

    It is entered around each resumption: an update between two turns never meets weights that autocast had already rounded.
    """
    turns = method.losses(batch)
    while True:
        with autocast(), SoundConvolutions():
            turn = next(turns, None)
        if turn is None:
            return
        yield turn


def launch(settings: TrainingSettings, device: str, loggers: Sequence[Any] = ()) -> Fabric:
    """Fabric on one device, or on the ranks that `torchrun` or SLURM started."""
    from lightning_fabric import Fabric

    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device)
    precision: Any = pick_precision(chosen) if settings.precision == "auto" else settings.precision
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    devices: Any = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    if world == 1 and chosen.type == "cuda":
        devices = [chosen.index or 0]
    fabric = Fabric(
        accelerator=chosen.type,
        devices=devices,
        num_nodes=max(1, world // devices) if world > 1 else 1,
        strategy="ddp" if world > 1 else "auto",
        precision=precision,
        loggers=list(loggers),
    )
    fabric.launch()
    if world > 1:
        atexit.register(leave)
    return fabric


def _blocks(method: Method) -> Iterator[nn.Module]:
    """The children of each network; of lists of modules, their members."""
    for child in (child for network in method.children() for child in network.children()):
        yield from child if isinstance(child, nn.ModuleList) else (child,)


def _schedules(optimizers: Mapping[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    if settings.plateau is None:
        return {}
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau,
        mode="max",
        factor=settings.plateau.factor,
        patience=settings.plateau.patience,
    )
    return {name: plateau(optimizer.optimizer) for name, optimizer in optimizers.items()}


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the dropout of one step: far apart for neighbouring steps, the same whenever the step is played again."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _gradient_norm(parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Norm of a player's gradients, bounded by `clip_norm` where one is set."""
    if clip_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _require_finite(numbers: Mapping[str, float], state: _State, batch: Batch) -> None:
    """Stop before a step that would write NaN into the weights."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise TrainingStopped(
                f"{name} is {value} at step {state.step}, epoch {state.epoch}, cases {', '.join(batch.cases)}",
                remedy="no weight was changed by it; inspect these cases, lower the learning rate or use precision 32,"
                " then go on with --resume",
            )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying; a second SIGINT interrupts at once."""
    caught: list[int] = []

    def catch(number: int, _: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    watched = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, catch) for number in watched}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
