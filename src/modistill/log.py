"""The log of a training: long rows, one number each."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from modistill.errors import FileError
from modistill.files import write_text

__all__ = ["LogRow", "read_log", "write_log"]


class LogRow(NamedTuple):
    """One number of one epoch.

    Attributes:
        epoch: counts from 0.
        step: steps made when it was taken.
        seconds: time spent on the steps of the epoch (or on the validation).
        name: `train/PLAYER/TERM` (mean over the epoch) or `validation/...`.
        value: the number.
    """

    epoch: int
    step: int
    seconds: float
    name: str
    value: float


def write_log(path: Path, rows: list[LogRow]) -> None:
    """Write all rows as CSV, complete or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LogRow._fields)
    writer.writerows((row.epoch, row.step, f"{row.seconds:.3f}", row.name, repr(row.value)) for row in rows)
    write_text(path, text.getvalue())


def read_log(path: Path) -> list[LogRow]:
    """Rows of a log; none where there is no file.

    Raises:
        FileError: a row cannot be read.
    """
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        try:
            return [
                LogRow(int(row["epoch"]), int(row["step"]), float(row["seconds"]), row["name"], float(row["value"]))
                for row in csv.DictReader(stream)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"damaged log: {error}", file=path, remedy="restore or remove the file") from error
