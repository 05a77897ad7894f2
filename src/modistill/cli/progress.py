"""Progress as people see it: a bar with an ETA on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from modistill.training import Status

__all__ = ["TrainingDisplay", "bar"]


def bar(console: Console | None = None) -> Progress:
    """A progress bar with count, time passed and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console or Console(stderr=True),
    )


class TrainingDisplay:
    """Shows the `Status` of a training: the bar counts steps, the note tells losses and the best score.

    Where there is no terminal (a log file, a CI), one line an epoch, at most one every ten seconds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.begin = time.monotonic()
        self.console = Console(stderr=True)
        self.progress = bar(self.console) if self.console.is_terminal else None
        self.scores: Mapping[str, float] = {}
        self.told = 0.0
        self.task: Any = None

    def __enter__(self) -> TrainingDisplay:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, status: Status) -> None:
        """Take note of where the training stands."""
        if not status.batch:
            self.scores = {k: v for k, v in status.values.items() if k.startswith("validation/")} or self.scores
        done, total = status.epoch * status.batches + status.batch, status.epochs * status.batches
        if self.progress is not None:
            if self.task is None:
                self.task = self.progress.add_task(self.name, total=total, note="")
            epoch = min(status.epoch + 1, status.epochs)
            note = f"epoch {epoch}/{status.epochs}  {self._note(status)}"
            self.progress.update(self.task, completed=done, note=note)
        elif not status.batch and (time.monotonic() - self.told > 10 or status.epoch == status.epochs):
            self.told = time.monotonic()
            print(f"{self.name}: epoch {status.epoch}/{status.epochs}  {self._note(status)}", file=sys.stderr, flush=True)

    def _note(self, status: Status) -> str:
        losses = {k.removeprefix("train/"): v for k, v in status.values.items() if "/" in k and "validation" not in k}
        parts = [f"{name} {value:.3f}" for name, value in zip(_short(list(losses)), losses.values(), strict=True)]
        if "validation/score" in self.scores:
            parts.append(f"validation dice {self.scores['validation/score']:.3f} (best {status.best or 0:.3f})")
        return "  ".join(parts)

    def finish(self, folder: Path) -> None:
        """Say where the result lies."""
        minutes = (time.monotonic() - self.begin) / 60
        self.console.print(f"[bold]{self.name}[/] trained in {minutes:.1f} min -> {folder}", highlight=False)


def _short(names: list[str]) -> list[str]:
    """Terms without their player, except where two players have a term of one name.

    Example:
        >>> _short(["translation.generators/hint", "translation.generators/cycle", "segmentors/hint"])
        ['generators/hint', 'cycle', 'segmentors/hint']
    """
    parts = [name.replace(".", "/").split("/") for name in names]
    counts = Counter(part[-1] for part in parts)
    return ["/".join(part[-2:] if counts[part[-1]] > 1 else part[-1:]) for part in parts]
