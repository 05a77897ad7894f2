"""What the tissues of the trunk look like in CT and MR: Hounsfield units, T1, T2 and proton density at 1.5 T.

| what | from |
|---|---|
| HU of muscle (55) and fat (-102) | seven patients of the soft-tissue sarcoma collection: Vallières 2015 [1], measured |
| HU of other healthy tissues | unenhanced CT, rounded, in the ranges of Schneider 2000 [2] and ICRU 46 |
| HU of lung cancer | 30 to 50 unenhanced [3] |
| T1, T2 of muscle, heart, blood, cord, cartilage | Stanisz 2005 [4] |
| T1, T2 of liver, spleen, kidney, pancreas, marrow; T1 of fat | de Bazelaire 2004 [5] |
| T1 of lung | 1.4 s, Mai 1999 [6] |
| T1, T2 of lung cancer | 1.5 s and 77 ms at 3 T, Graf 2025 [7]; T1 is a fifth shorter at 1.5 T [5] |
| tumour over muscle on T2w | 2.14 ± 0.63 in 52 lung cancers, Usuda 2021 [8] |
| collapsed lung on T2w | bright behind an obstruction, else dark, Herold 1991 [9] |

[1] doi 10.1088/0031-9155/60/14/5471 [2] doi 10.1088/0031-9155/45/2/314 [3] https://pmc.ncbi.nlm.nih.gov/articles/PMC11076304
[4] doi 10.1002/mrm.20605 [5] doi 10.1148/radiol.2303021331 [6] doi 10.1002/(sici)1522-2594(199905)41:5<866::aid-mrm2>3.0.co;2-d
[7] doi 10.3390/cancers17203370 [8] doi 10.3390/cancers13153713 [9] doi 10.1148/radiology.178.3.1994407

Three numbers are not plain measurements. Fat has the T2 it seems to have in trains of echoes, where it is bright (Henkelman et
al. 1992, doi 10.1002/jmri.1880020511). Flowing blood leaves the slice between the pulses of a spin echo (flow void), so most of
its density is taken away. T2 of tumour and muscle (74 and 45 ms, within what was measured) are those that give the published
ratio of 2.14 on the T2w sequence here, and the tumour's spread between patients is that of the ratio. Spreads of the
other tissues are plausible choices, not measurements. Nothing was chosen with a method's score in view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from modistill.phantom.sequences import Tissue

__all__ = ["ABDOMEN", "CHEST", "Substance", "draw_substances"]


@dataclass(frozen=True)
class Substance(Tissue):
    """A tissue in CT as well as in MR (`modistill.phantom.sequences.Tissue`).

    Attributes:
        hu: Hounsfield units.
        hu_between: standard deviation between patients, in HU.
        hu_within: the same within the tissue of one patient.
    """

    hu: float = 0.0
    hu_between: float = 3.0
    hu_within: float = 4.0


def _of(
    hu: float,
    t1: float,
    t2: float,
    density: float = 0.8,
    *,
    between: tuple[float, float] = (0.04, 0.06),
    within: tuple[float, float] = (0.04, 0.06),
    fat: float = 0.0,
    hu_sd: tuple[float, float] = (3.0, 4.0),
) -> Substance:
    """A row of the tables: HU, T1 and T2 in ms, proton density; deviations of log T1 and log T2, and of HU."""
    return Substance(t1, t2, density, 0.0, (*between, 0.0), (*within, 0.0), fat, hu, *hu_sd)


_COMMON: Mapping[str, Substance] = {
    "air": _of(-1012, 1000, 10, 0.0, hu_sd=(0, 0)),  # around the patient, as scanners store it
    "gas": _of(-995, 1000, 10, 0.0, hu_sd=(0, 0)),  # in airways and bowel
    "fat": _of(-102, 343, 110, 0.9, fat=0.95, hu_sd=(3, 5)),
    "muscle": _of(55, 1008, 45, hu_sd=(2.5, 5)),
    "lung": _of(-850, 1400, 40, 0.12, within=(0.1, 0.2), hu_sd=(25, 22)),
    "bone": _of(950, 1000, 2, 0.05, hu_sd=(80, 60)),
    "marrow": _of(260, 549, 49, 0.7, fat=0.5, hu_sd=(25, 25)),
    "cartilage": _of(100, 1024, 30, 0.7, hu_sd=(10, 12)),
    "disc": _of(85, 1100, 75, 0.75),
    "fluid": _of(12, 4000, 1500, 1.0),
    "cord": _of(38, 745, 74, 0.75),
    "blood": _of(43, 1441, 290, 0.06, hu_sd=(3.5, 3), within=(0.05, 0.3)),
    "liver": _of(57, 586, 46, hu_sd=(6, 4)),
    "spleen": _of(48, 1057, 79),
    "gut": _of(40, 950, 60),  # walls of oesophagus, stomach and bowel
    "chyme": _of(18, 2200, 220, 0.9, between=(0.2, 0.3), within=(0.1, 0.2), hu_sd=(10, 8)),
}

CHEST: Mapping[str, Substance] = {
    **_COMMON,
    "heart": _of(46, 1030, 43),
    "tumour": _of(43, 1200, 74, between=(0.06, 0.19), within=(0.06, 0.10), hu_sd=(6, 6)),
    "necrosis": _of(28, 1600, 105, 0.85, between=(0.06, 0.15), within=(0.08, 0.12), hu_sd=(6, 5)),
    "collapse": _of(42, 1250, 105, between=(0.06, 0.10), within=(0.06, 0.12), hu_sd=(6, 6)),
}
"""Tissues of the chest; `air` comes first, it fills the picture before anything is painted."""

ABDOMEN: Mapping[str, Substance] = {
    **_COMMON,
    "blood": _of(43, 1441, 290, 0.25, hu_sd=(3.5, 3), within=(0.05, 0.3)),
    "branch": _of(44, 1441, 140, within=(0.05, 0.1)),  # slow blood in the liver's vessels, which belong to the liver
    "stool": _of(25, 700, 70, 0.8, between=(0.2, 0.2), within=(0.35, 0.35), hu_sd=(15, 60)),
    "cortex": _of(33, 966, 87, 0.85),
    "medulla": _of(30, 1412, 85, 0.85),
    "pancreas": _of(42, 584, 46),
    "bile": _of(8, 2200, 500, 1.0, between=(0.3, 0.2)),
}
"""Tissues of the abdomen."""


def draw_substances(rng: np.random.Generator, table: Mapping[str, Substance], **t2_ms: float) -> dict[str, Substance]:
    """One patient's tissues: the table, with what varies between patients.

    Args:
        rng: consumed by an amount that depends on the table alone.
        table: `CHEST` or `ABDOMEN`.
        t2_ms: tissue -> T2 of this patient, where it is of another kind than the table's.
    """
    drawn = {}
    for name, substance in table.items():
        t1, t2, hu = rng.standard_normal(3).clip(-2, 2) * (*substance.between[:2], substance.hu_between)
        drawn[name] = replace(
            substance,
            t1_ms=substance.t1_ms * float(np.exp(t1)),
            t2_ms=t2_ms.get(name, substance.t2_ms) * float(np.exp(t2)),
            hu=substance.hu + float(hu),
        )
    return drawn
