"""Who trains, who validates, who tests: decided once, by case id, and written down.

A split is asked for as `{part: share}`. A share is a list of case ids, a count, or a fraction of the cases that are left after
lists and counts; fractions are relative to each other. `{"test": [...], "train": 0.9, "validation": 0.1}` therefore fixes the
test cases and deals the rest.

Dealing is seeded, does not depend on the order of the ids, keeps all examinations of one patient in one part, and is
stratified: each stratum is spread over the parts in proportion.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from modistill.errors import CaseError, RecipeError
from modistill.files import parse_yaml, read_json

__all__ = ["Share", "Split", "load_shares", "make_split", "patient_of", "require_known", "tumour_strata"]

_LEFT_OUT = ""  # the part of those that counts leave over; a real part has a name

Share: TypeAlias = float | int | Sequence[str]

_FOLLOW_UPS = (
    re.compile(r"(.+?)[-_](?:ses-?\w+|(?:tp|visit)\d+)", re.IGNORECASE),
    # Only after a patient number of five digits or more: `STUDY2_001` and `2021_001` are patients, not visits.
    re.compile(r"((?:.*[-_])?\d{5,})[-_]\d{3}"),
)


def patient_of(case: str) -> str:
    """The patient an examination belongs to, where the id says so (BraTS follow-ups `-000`, `-001`; `_ses-1`; `_tp2`).

    Example:
        >>> [patient_of(case) for case in ("BraTS-GLI-00005-001", "sub-01_ses-02", "BraTS2021_00005", "2021_001")]
        ['BraTS-GLI-00005', 'sub-01', 'BraTS2021_00005', '2021_001']
    """
    for pattern in _FOLLOW_UPS:
        if found := pattern.fullmatch(case):
            return found[1]
    return case


@dataclass(frozen=True)
class Split:
    """Parts of a cohort that share no patient.

    Attributes:
        parts: part name -> case ids, ascending.
        seed: the one the cases were dealt with; None if every id was listed.
        patients: case id -> patient, for those where the id does not say it.

    Raises:
        CaseError: a case or a patient stands in two parts.
    """

    parts: Mapping[str, tuple[str, ...]]
    seed: int | None = None
    patients: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", MappingProxyType({name: tuple(sorted(ids)) for name, ids in self.parts.items()}))
        owner: dict[str, tuple[str, str]] = {}
        for part, ids in self.parts.items():
            for case in ids:
                patient = self.patients.get(case, patient_of(case))
                other_part, other_case = owner.setdefault(patient, (part, case))
                if other_part != part:
                    who = "the case" if case == other_case else f"patient {patient} ({other_case}, {case})"
                    raise CaseError(
                        f"{who} is in {other_part} and in {part}: the score would be about patients seen in training",
                        case=case,
                        remedy="list it in one part only",
                    )

    def __getitem__(self, part: str) -> tuple[str, ...]:
        """Ids of one part; a part nobody is in is empty."""
        return self.parts.get(part, ())

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for exactly this split; kept in the plan and in every run."""
        text = json.dumps({part: list(ids) for part, ids in sorted(self.parts.items()) if ids})
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """As plain values: the parts, the seed, and the digest."""
        parts = {part: list(ids) for part, ids in self.parts.items()}
        return {"parts": parts, "seed": self.seed, "patients": dict(self.patients), "digest": self.digest}

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read a `split.json`.

        Raises:
            FileError: it cannot be read.
            RecipeError: see `from_json`.
        """
        return cls.from_json(read_json(path), file=path)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: Path | None = None) -> Split:
        """The inverse of `to_json`.

        Raises:
            RecipeError: something is missing, or the ids were changed after the digest was written.
        """
        try:
            parts = {str(part): tuple(ids) for part, ids in values["parts"].items()}
            split = cls(parts, values["seed"], values["patients"])
            digest = values["digest"]
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"not a split: {error}", file=file, remedy="prepare the data again") from error
        if digest != split.digest:
            raise RecipeError("the ids were changed by hand", file=file, remedy="prepare again with --split FILE")
        return split


def make_split(
    cases: Collection[str],
    shares: Mapping[str, Share],
    *,
    seed: int = 0,
    strata: Mapping[str, str] | None = None,
    patients: Mapping[str, str] | None = None,
) -> Split:
    """Deal the cases of a cohort.

    Args:
        cases: case ids, in any order.
        shares: part -> ids, count or fraction (see the module). With lists only and no "train" among them, the rest trains;
            with a "train" list, cases nobody listed are left out.
        seed: of the shuffle.
        strata: case id -> stratum (`tumour_strata`); cases without one form their own.
        patients: case id -> patient, where the id does not say it.

    Raises:
        RecipeError: unknown id, counts beyond the cases there are, or a share that makes no sense.
        CaseError: a list puts a case or a patient into two parts.
    """
    shares = _checked(shares)
    listed = {part: tuple(share) for part, share in shares.items() if not isinstance(share, int | float)}
    require_known(listed, cases)
    owners = dict(patients or {})
    rest = sorted(set(cases).difference(*listed.values()))
    followers = {owners.get(case, patient_of(case)): part for part, ids in listed.items() for case in ids}
    parts = {part: list(listed.get(part, ())) for part in shares}
    groups: dict[str, list[str]] = defaultdict(list)
    for case in rest:
        patient = owners.get(case, patient_of(case))
        if patient in followers and len(listed) < len(shares):
            parts[followers[patient]].append(case)  # a listed patient brings the other examinations along
        else:
            groups[patient].append(case)
    dealing = {part: share for part, share in shares.items() if isinstance(share, int | float)}
    if dealing:
        targets = _targets(dealing, groups)
        for patient, part in _deal(groups, targets, seed, strata or {}).items():
            if part != _LEFT_OUT:
                parts[part] += groups[patient]
    return Split({part: tuple(ids) for part, ids in parts.items()}, seed if dealing else None, owners)


def tumour_strata(volumes_ml: Mapping[str, Mapping[str, float]], grades: Mapping[str, str] | None = None) -> dict[str, str]:
    """Strata by grade, by which classes a case has, and by the tertile of its total volume.

    Args:
        volumes_ml: case id -> class name -> volume in ml.
        grades: case id -> grade, where known (BraTS folders HGG and LGG).

    Returns:
        case id -> stratum; a name that sorts, so that similar strata are neighbours.
    """
    totals = {case: sum(volumes.values()) for case, volumes in volumes_ml.items()}
    bounds = np.quantile(list(totals.values()), [1 / 3, 2 / 3]) if totals else np.zeros(2)
    strata = {}
    for case, volumes in volumes_ml.items():
        present = "+".join(sorted(name for name, volume in volumes.items() if volume > 0)) or "none"
        tertile = int(np.searchsorted(bounds, totals[case]))
        strata[case] = f"{(grades or {}).get(case, 'any')}/{present}/{tertile}"
    return strata


def load_shares(path: Path) -> dict[str, Share]:
    """Read a split file: YAML or JSON, `{part: [ids] or count or fraction}`, or a `split.json` of a prepared cohort.

    Raises:
        RecipeError: the file cannot be read or holds something else.
    """
    try:
        values = parse_yaml(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read: {str(error).splitlines()[0]}", file=path) from error
    if isinstance(values, dict) and "parts" in values:
        values = values["parts"]
    if not isinstance(values, dict):
        raise RecipeError("not a split file", file=path, remedy="write `test: [case, case]`, `train: 0.9`, `validation: 0.1`")
    return _checked({str(part): share for part, share in values.items()}, file=path)


def _checked(shares: Mapping[str, Share], file: Path | None = None) -> dict[str, Share]:
    checked = dict(shares)
    for part, share in checked.items():
        if isinstance(share, str | bool) or not isinstance(share, int | float | Sequence):
            raise RecipeError(f"part {part} is {share!r}", file=file, remedy="give a list of ids, a count or a fraction")
        if isinstance(share, int | float):
            if not np.isfinite(share) or share < 0 or (isinstance(share, float) and share > 1):
                raise RecipeError(
                    f"part {part} is {share}", file=file, remedy="counts are whole numbers, fractions lie in 0..1"
                )
        else:
            checked[part] = [str(case) for case in share]
    if all(not isinstance(share, int | float) for share in checked.values()) and "train" not in checked:
        checked["train"] = 1.0
    return checked


def require_known(shares: Mapping[str, Share], cases: Collection[str]) -> None:
    """Refuse a share that lists a case which is not in the cohort.

    Raises:
        RecipeError: with the nearest id there is.
    """
    for part, share in shares.items():
        for case in () if isinstance(share, int | float) else share:
            if case not in cases:
                near = difflib.get_close_matches(case, cases, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"the cohort has {len(cases)} cases"
                raise RecipeError(f"{part} lists the unknown case {case}", remedy=remedy)


def _targets(shares: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How many cases each part shall get of those that are dealt."""
    total = sum(map(len, groups.values()))
    targets = {part: float(share) for part, share in shares.items() if isinstance(share, int)}
    left = total - sum(targets.values())
    if left < 0:
        raise RecipeError(f"counts ask for {int(sum(targets.values()))} cases, {total} are there", remedy="ask for fewer")
    fractions = {part: share for part, share in shares.items() if isinstance(share, float)}
    whole = sum(fractions.values())
    if fractions and not whole > 0:
        raise RecipeError("all fractions are 0", remedy="give at least one part a share")
    targets.update({part: left * share / whole for part, share in fractions.items()})
    return targets if fractions else targets | {_LEFT_OUT: left}


def _deal(
    groups: Mapping[str, Sequence[str]], targets: Mapping[str, float], seed: int, strata: Mapping[str, str]
) -> dict[str, str]:
    """Patient -> part. Strata lie one after the other; each patient goes where most is owed, so each stratum is spread.

    When every patient has one case and the targets are whole numbers, the parts get exactly their targets.
    """
    total = sum(targets.values())
    order = sorted(groups)
    order = [order[index] for index in np.random.default_rng(seed).permutation(len(order))]
    order.sort(key=lambda patient: strata.get(groups[patient][0], ""))
    dealt = {part: 0 for part, target in targets.items() if target > 0}
    parts: dict[str, str] = {}
    done = 0
    for patient in order:
        done += len(groups[patient])
        owed = {part: round(targets[part] * done / total - dealt[part], 9) for part in dealt}
        part = max(dealt, key=lambda name: (owed[name], -dealt[name]))
        dealt[part] += len(groups[patient])
        parts[patient] = part
    return parts
