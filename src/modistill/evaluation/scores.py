"""Score rows: one number for one case, region and metric, in a long CSV file with its protocol beside it.

`scores.csv` holds what was measured; `scores.json` beside it holds the protocol and the digest of the CSV file. A table whose
protocol is lost, or that was edited by hand, is refused: its numbers could not be compared with anything.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import modistill
from modistill.errors import FileError, ScoreError
from modistill.evaluation.protocol import METRICS, Protocol, Rules, Status
from modistill.evaluation.synthesis import SynthesisProtocol
from modistill.files import read_json, write_json, write_text

__all__ = ["Score", "Scores", "read_scores", "refuse_repeated", "require_csv", "write_scores"]

_WORST_FIRST: tuple[Status, ...] = ("failed", "one_empty", "measured", "both_empty")
_COLUMNS = ("run", "case", "available", "region", "metric", "value", "unit", "status")


@dataclass(frozen=True, slots=True)
class Score:
    """One number.

    Attributes:
        run: name of the run that predicted, `arm` or `arm/seed`.
        case: id of the case.
        available: the modalities the model was given, joined by "+", or the pair SOURCE-to-TARGET that it translated; "" where
            nobody wrote it down.
        region: name of the region.
        metric: a name in `modistill.evaluation.protocol.METRICS`, which knows unit and direction.
        value: NaN where the protocol leaves it undefined.
        status: which rule gave the value: "measured", "both_empty", "one_empty" or "failed" (no usable prediction).
    """

    run: str
    case: str
    available: str
    region: str
    metric: str
    value: float
    status: Status = "measured"

    @property
    def unit(self) -> str:
        """The metric's unit, "" for a share."""
        return METRICS[self.metric].unit


@dataclass(frozen=True)
class Scores:
    """Rows of one protocol.

    Attributes:
        rows: in the order case, region, metric.
        protocol: the rules they were made by.
    """

    rows: tuple[Score, ...]
    protocol: Rules

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the order of their first row."""
        return tuple(dict.fromkeys(row.run for row in self.rows))

    @property
    def cases(self) -> tuple[str, ...]:
        """Ids of the cases, sorted."""
        return tuple(sorted({row.case for row in self.rows}))

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, in the order of their first row."""
        return tuple(dict.fromkeys(row.region for row in self.rows))

    @property
    def subsets(self) -> tuple[str, ...]:
        """Sets of modalities the models were given, in the order of their first row."""
        return tuple(dict.fromkeys(row.available for row in self.rows))

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the cases for which some run left no usable prediction, sorted."""
        return tuple(sorted({row.case for row in self.rows if row.status == "failed"}))

    def select(self, *, run: str | None = None, cases: Collection[str] | None = None, available: str | None = None) -> Scores:
        """The rows of one run, of some cases only, or of one set of modalities."""

        def kept(row: Score) -> bool:
            return (
                (run is None or row.run == run)
                and (cases is None or row.case in cases)
                and (available is None or row.available == available)
            )

        rules = self.protocol if available is None else self.protocol.of_set(available)
        return Scores(tuple(filter(kept, self.rows)), rules)

    def averaged(self) -> Scores:
        """One row for all sets of modalities of a case: the mean of those that are defined, failed if any failed."""
        groups: dict[tuple[str, str, str, str], list[Score]] = {}
        for row in self.rows:
            groups.setdefault((row.run, row.case, row.region, row.metric), []).append(row)

        def mean(rows: Sequence[Score]) -> Score:
            values = [row.value for row in rows if not math.isnan(row.value)]
            worst = min(rows, key=lambda row: _WORST_FIRST.index(row.status)).status
            return replace(rows[0], available="", value=sum(values) / len(values) if values else math.nan, status=worst)

        return Scores(tuple(map(mean, groups.values())), self.protocol)


def write_scores(path: Path, scores: Scores, *, note: dict[str, Any] | None = None) -> None:
    """Write rows as CSV and their protocol as JSON beside it (`scores.csv` and `scores.json`), each of them atomically.

    Args:
        path: of the CSV file.
        scores: what to write.
        note: more entries for the JSON file (where the predictions lay, which faults there were).

    Raises:
        FileError: the name does not end in .csv, or a file cannot be written.
    """
    path = Path(path)
    require_csv(path)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in scores.rows:
        value = "" if math.isnan(row.value) else repr(float(row.value))
        writer.writerow((row.run, row.case, row.available, row.region, row.metric, value, row.unit, row.status))
    text = stream.getvalue()
    facts = {
        "version": modistill.__version__,
        "protocol": scores.protocol.to_json(),
        "runs": scores.runs,
        "cases": scores.cases,
        "failed": scores.failed,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write_text(path, text)
    # Second: a process killed between the two leaves a digest that does not fit, which reading refuses.
    write_json(path.with_suffix(".json"), (note or {}) | facts)


def require_csv(path: Path) -> None:
    """Refuse a name for score rows that does not end in .csv (before hours of scoring, where asked early).

    Raises:
        FileError: it does not.
    """
    if path.suffix != ".csv":
        raise FileError("score rows are written as CSV", file=path, remedy="give a name that ends in .csv")


def read_scores(path: Path) -> Scores:
    """Read rows and their protocol.

    Raises:
        FileError: a file is missing, or the CSV file is not the one its JSON file was written for.
        ScoreError: a row is damaged or stands there twice, or the protocol is foreign.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}", file=path, remedy="run `modistill evaluate`") from error
    facts = read_json(path.with_suffix(".json"))
    if not isinstance(facts, dict) or not isinstance(facts.get("protocol"), dict):
        raise ScoreError("holds no protocol", file=path.with_suffix(".json"), remedy="run `modistill evaluate` again")
    if facts.get("sha256") != hashlib.sha256(content).hexdigest():
        raise FileError(
            "is not the file its JSON was written for (digests differ)", file=path, remedy="run `modistill evaluate` again"
        )
    rows = csv.reader(io.StringIO(content.decode()))
    if tuple(next(rows, ())) != _COLUMNS:
        raise ScoreError(f"columns are not {', '.join(_COLUMNS)}", file=path, remedy="run `modistill evaluate` again")
    parsed = tuple(_parse(row, path, line) for line, row in enumerate(rows, start=2))
    refuse_repeated(parsed, path)
    kind = SynthesisProtocol if "scales" in facts["protocol"] else Protocol
    return Scores(parsed, kind.from_json(facts["protocol"]))


def _parse(row: Sequence[str], path: Path, line: int) -> Score:
    try:
        run, case, available, region, metric, value, _unit, status = row
        if metric not in METRICS or status not in get_args(Status):
            raise ValueError
        number = float(value) if value else math.nan
    except ValueError as error:
        raise ScoreError(f"line {line} is damaged: {','.join(row)[:80]}", file=path, remedy="evaluate again") from error
    return Score(run, case, available, region, metric, number, cast(Status, status))


def refuse_repeated(rows: Iterable[Score], path: Path | None = None) -> None:
    """Refuse a case that one run scores twice from the same modalities: averages would count it double.

    Raises:
        ScoreError: naming the first such case.
    """
    seen: set[tuple[str, str, str, str, str]] = set()
    for row in rows:
        key = (row.run, row.available, row.case, row.region, row.metric)
        if key in seen:
            raise ScoreError(
                f"run {row.run} scores {row.metric} of {row.region} twice",
                case=row.case,
                file=path,
                remedy="give each run a name of its own",
            )
        seen.add(key)
