"""Predicting or translating many cases: each for itself, so that a bad one costs nobody else anything."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch

from modistill.data.cohort import CaseFiles, Fault
from modistill.errors import ModistillError
from modistill.inference.completion import Substitute
from modistill.inference.model import Model
from modistill.inference.outputs import CaseFolder, OutputFolder, TranslationFolder, source_digests
from modistill.inference.predictor import Predictor
from modistill.inference.translator import Translator
from modistill.inference.windows import OnWindow

__all__ = ["CaseRow", "Progress", "exit_code", "predict_cohort", "translate_cohort"]

Progress: TypeAlias = Callable[[str, str, float], None]  # case, model, fraction of the case that is done
_Work: TypeAlias = Callable[[CaseFiles], "CaseRow"]
_DONE_BEFORE = "done by an earlier run"


@dataclass(frozen=True)
class CaseRow:
    """What became of one case: an entry of `report.json`.

    Attributes:
        case: its id.
        status: "done", "skipped" (done by an earlier run) or "failed".
        model: name of the model that was used.
        available: the modalities it was given.
        reason: why this model, or what is wrong.
        file: at fault, if one is.
        remedy: what the user can do.
        seconds: spent on the case.
        notices: what a user should know, one line each.
        traceback: of a failure that no message foresaw.
        substitutes: what stood in for modalities that the model reads and the case lacks.
        synthetic_inputs: those of `available` whose image a network made, and no scanner.
    """

    case: str
    status: Literal["done", "skipped", "failed"]
    model: str | None = None
    available: tuple[str, ...] = ()
    reason: str = ""
    file: str | None = None
    remedy: str | None = None
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    traceback: str | None = None
    substitutes: tuple[Substitute, ...] = ()
    synthetic_inputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(ModistillError(self.reason, case=self.case, file=self.file, remedy=self.remedy))


def predict_cohort(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    output: OutputFolder,
    *,
    faults: Sequence[Fault] = (),
    progress: Progress | None = None,
) -> Iterator[CaseRow]:
    """Predict case after case; `report.json` is up to date after each, and a case that failed leaves no file of its name.

    Args:
        predictor: the models.
        cases: their files.
        output: an opened folder.
        faults: of the cohort; a case that could not even be gathered has failed.
        progress: told where the case in work stands.

    Yields:
        One row a case, first those of the faults. Errors of a case become its row and are not raised.
    """

    def one(case: CaseFiles) -> CaseRow:
        return _predict_one(predictor, case, output, progress)

    completion = predictor.completion
    about = _about(predictor.models, predictor.device) | {"completed": None if completion is None else completion.demand()}
    yield from _each(cases, one, output, faults, about)


def translate_cohort(
    translator: Translator,
    cases: Sequence[CaseFiles],
    output: TranslationFolder,
    *,
    faults: Sequence[Fault] = (),
    progress: Progress | None = None,
) -> Iterator[CaseRow]:
    """Translate case after case, as `predict_cohort` predicts them; `available` of a row is the source that was chosen."""

    def one(case: CaseFiles) -> CaseRow:
        return _translate_one(translator, case, output, progress)

    yield from _each(cases, one, output, faults, _about([translator.model], translator.device))


def _each(
    cases: Sequence[CaseFiles], one: _Work, output: CaseFolder, faults: Sequence[Fault], about: Mapping[str, Any]
) -> Iterator[CaseRow]:
    """The rows of the faults, then that of each case; what is raised becomes the row of its case."""
    refused = {fault.case: fault for fault in faults if fault.severity == "error" and fault.case is not None}
    rows = [CaseRow(name, "failed", None, (), one.reason, one.file, one.remedy) for name, one in refused.items() if name]
    others = [str(fault) for fault in faults if fault not in refused.values()]
    for row in rows:
        output.clear(row.case)
        yield row
    for case in cases:
        row = _attempt(one, case, output)
        rows.append(row)
        output.write_report(_report(rows, others, len(cases) + len(refused), about))
        yield row
    output.write_report(_report(rows, others, len(cases) + len(refused), about))


def exit_code(rows: Sequence[CaseRow]) -> int:
    """0 if every case is there, 2 if none is, 3 if some are.

    Example:
        >>> exit_code([CaseRow("a", "done"), CaseRow("b", "failed")])
        3
    """
    failed = sum(row.status == "failed" for row in rows)
    return 0 if not failed else 2 if failed == len(rows) else 3


def _predict_one(predictor: Predictor, case: CaseFiles, output: OutputFolder, progress: Progress | None) -> CaseRow:
    begin = time.monotonic()
    output.require_name(case.id)
    model = predictor.choose(case.modalities, case=case.id)
    on_window = _telling(progress, case.id, model.name)
    used, substitutes = predictor.opened(model, case.modalities), predictor.substitutes(model, case.modalities)
    made_with = predictor.settings(model, substitutes) | {
        "convention": predictor.convention(case, model).name,
        "probabilities": output.probabilities,
    }
    inputs = source_digests(case, used)
    if output.is_done(case, made_with, inputs):
        synthetic = output.synthetic_inputs(case.id)
        return CaseRow(case.id, "skipped", model.name, used, _DONE_BEFORE, substitutes=substitutes, synthetic_inputs=synthetic)
    output.clear(case.id)
    found = predictor.predict(case, on_window=on_window)
    output.write(found, made_with, inputs, time.monotonic() - begin)
    seconds = round(time.monotonic() - begin, 2)
    return CaseRow(
        case.id,
        "done",
        model.name,
        used,
        found.reason,
        seconds=seconds,
        notices=found.notices,
        substitutes=found.substitutes,
        synthetic_inputs=found.synthetic_inputs,
    )


def _translate_one(translator: Translator, case: CaseFiles, output: TranslationFolder, progress: Progress | None) -> CaseRow:
    begin = time.monotonic()
    name, used = translator.model.name, translator.require_source(case.modalities)
    on_window = _telling(progress, case.id, name)
    made_with = translator.settings() | {"source": used[0]}
    inputs = source_digests(case, used, with_labels=translator.with_labels)
    if output.is_done(case, made_with, inputs):
        return CaseRow(case.id, "skipped", name, used, _DONE_BEFORE, synthetic_inputs=output.synthetic_inputs(case.id))
    output.clear(case.id)
    made = translator.translate(case, on_window=on_window)
    output.write(made, made_with, inputs, time.monotonic() - begin)
    seconds = round(time.monotonic() - begin, 2)
    reason = f"{name} translates {made.read} into {made.target}"
    return CaseRow(
        *(case.id, "done", name, used, reason), seconds=seconds, notices=made.notices, synthetic_inputs=made.synthetic_inputs
    )


def _telling(progress: Progress | None, case: str, model: str) -> OnWindow | None:
    """Who is told of the windows of a case; told at once that it begins."""
    if progress is None:
        return None
    progress(case, model, 0.0)
    return lambda done, total: progress(case, model, done / total)


def _attempt(one: _Work, case: CaseFiles, output: CaseFolder) -> CaseRow:
    begin = time.monotonic()
    try:
        return one(case)
    except ModistillError as error:
        output.clear(case.id)
        seconds = round(time.monotonic() - begin, 2)
        return CaseRow(case.id, "failed", None, (), error.reason, error.file, error.remedy, seconds)
    except Exception as error:  # a bug met in one case; the others are worth finishing, and the report keeps the evidence
        output.clear(case.id)
        return CaseRow(
            case.id,
            "failed",
            reason=f"unforeseen {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            remedy="please report it, with the traceback in report.json",
            seconds=round(time.monotonic() - begin, 2),
            traceback=traceback.format_exc(),
        )


def _about(models: Sequence[Model], device: torch.device) -> dict[str, Any]:
    """Who works, and where."""
    return {
        "device": str(device),
        "models": [
            {
                "name": model.name,
                "reads": list(model.reads),
                "any_subset": model.any_subset,
                "source": str(model.source),
                "digest": model.digest,
            }
            for model in models
        ],
    }


def _report(rows: Sequence[CaseRow], faults: Sequence[str], total: int, about: Mapping[str, Any]) -> dict[str, Any]:
    counts = Counter(row.status for row in rows)
    return {
        "cases": total,
        **{status: counts[status] for status in ("done", "skipped", "failed")},
        "not_yet": total - len(rows),
        **about,
        "faults": list(faults),
        "rows": [asdict(row) for row in rows],
    }
