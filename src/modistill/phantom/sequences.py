"""From tissue to image: signal equations, and what a scanner does to them.

Spin echo (T1w, T2w):          S = PD (1 - exp(-TR/T1)) exp(-TE/T2)
Inversion recovery (FLAIR):    S = PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), magnitude
Spoiled gradient echo:         S = PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2*), E1 = exp(-TR/T1), flip angle a
Fat suppression:               the share of a tissue's signal that comes from fat is weakened by a factor
Gadolinium:                    1/T1' = 1/T1 + r1 C,  1/T2' = 1/T2 + r2 C

(Haacke et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design, 2nd ed. 2014, chapters 8, 15, 18 and 24.)
The gradient echo takes T2 for T2*: its echo time is so short that neither matters much.

T1, T2 and PD of the brain's tissues were solved from these equations so that the contrast to white matter is that of 23
patients of BraTS 2021 (tumour) and of one patient with labelled tissue (grey matter, CSF); the spreads between patients and
within a tissue are calibrated on the same table. No number was chosen with a method's score in view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modistill.phantom.noise import HEAD_REACH_MM, Axes, Floats, Reach, smooth_field

__all__ = [
    "MODALITIES",
    "TISSUES",
    "Mask",
    "Scan",
    "Texture",
    "Tissue",
    "acquire",
    "draw_scans",
    "draw_texture",
    "draw_tissues",
    "mix",
    "signal",
    "white_signal",
]

Mask = NDArray[np.bool_]

# Relaxivities of gadolinium chelates, per mM and second (Rohrer et al. 2005, doi 10.1097/01.rli.0000184756.66360.d3).
_R1, _R2 = 4.5, 5.5


@dataclass(frozen=True)
class Tissue:
    """What the signal of a tissue depends on.

    Attributes:
        t1_ms, t2_ms: relaxation times.
        density: proton density, 1 for water.
        gadolinium_mmol_l: concentration in mmol/l after injection.
        between: standard deviations of log T1, log T2 and log concentration between patients.
        within: the same, within the tissue of one patient.
        fat: share of the signal that comes from fat.
    """

    t1_ms: float
    t2_ms: float
    density: float
    gadolinium_mmol_l: float = 0.0
    between: tuple[float, float, float] = (0.02, 0.02, 0.2)
    within: tuple[float, float, float] = (0.03, 0.05, 0.2)
    fat: float = 0.0


@dataclass(frozen=True)
class Scan:
    """One sequence as one scanner runs it.

    Attributes:
        tr_ms, te_ms, ti_ms: repetition, echo and inversion times; no inversion: None.
        contrast: after gadolinium.
        gain: numbers in the file per unit of signal.
        noise: standard deviation of the noise per channel, relative to a tissue (white matter in the brain).
        slice_mm: slice thickness, and `slice_axis` its array axis.
        bias: amplitude of the receive field, as a fraction.
        flip_deg: flip angle of a spoiled gradient echo; None is a spin echo.
        fat_left: what fat suppression leaves of the fat's signal.
    """

    tr_ms: float
    te_ms: float
    ti_ms: float | None
    contrast: bool
    gain: float
    noise: float
    slice_mm: float
    slice_axis: int
    bias: float
    flip_deg: float | None = None
    fat_left: float = 1.0


TISSUES: Mapping[str, Tissue] = {
    "white": Tissue(830, 72, 0.70, 0.028, (0, 0, 0), (0.025, 0.045, 0.2)),
    "grey": Tissue(1290, 83, 0.82, 0.024),
    "deep": Tissue(970, 80, 0.695, 0.022),
    "csf": Tissue(3850, 1200, 1.0, 0.002, (0.02, 0.1, 0.2), (0.02, 0.05, 0.2)),
    "vessel": Tissue(1700, 40, 0.8, 1.2, (0.05, 0.1, 0.3), (0.05, 0.1, 0.3)),
    "choroid": Tissue(1400, 120, 0.85, 0.35),
    "necrosis": Tissue(1500, 133, 0.84, 0.002, (0.24, 0.30, 0.8), (0.10, 0.16, 0.8)),
    "solid": Tissue(1260, 127, 0.775, 0.004, (0.20, 0.25, 0.6), (0.10, 0.16, 0.8)),
    "enhancing": Tissue(1060, 108, 0.76, 0.225, (0.14, 0.10, 0.45), (0.10, 0.14, 0.8)),
    "oedema": Tissue(1110, 108, 0.775, 0.018, (0.07, 0.15, 0.4), (0.09, 0.17, 0.5)),
}
_TUMOUR = ("necrosis", "solid", "enhancing", "oedema")
_TUMOUR_BETWEEN = (0.04, 0.13)  # log T1 and log T2 shared by all tissues of one tumour
_WATER = 0.55  # correlation of log T1 with log T2: both follow water

_PROTOCOL = {  # TR, TE, TI in ms; each patient's differ by a few per cent
    "t1": (550.0, 10.0, None),
    "t1ce": (550.0, 10.0, None),
    "t2": (6000.0, 100.0, None),
    "flair": (9000.0, 110.0, 2500.0),
}
MODALITIES = tuple(_PROTOCOL)
_NOISE = {"t1": 0.020, "t1ce": 0.025, "t2": 0.035, "flair": 0.035}


def signal(scan: Scan, tissue: Tissue, t1: Floats, t2: Floats, concentration: Floats) -> Floats:
    """Signal of a tissue, arbitrary units, for T1 and T2 in ms and gadolinium in mmol/l (arrays of one shape).

    Example:
        >>> water = Tissue(4000.0, 2000.0, 1.0)
        >>> long = Scan(1e6, 0.0, None, False, 1.0, 0.0, 1.0, 2, 0.0)
        >>> one = np.array([4000.0]), np.array([2000.0]), np.array([0.0])
        >>> float(signal(long, water, *one)[0])
        1.0
    """
    if scan.contrast:
        t1 = 1 / (1 / t1 + _R1 * concentration / 1000)
        t2 = 1 / (1 / t2 + _R2 * concentration / 1000)
    recovery = 1 - np.exp(-scan.tr_ms / t1)
    if scan.ti_ms is not None:
        recovery = np.abs(1 - 2 * np.exp(-scan.ti_ms / t1) + np.exp(-scan.tr_ms / t1))
    if scan.flip_deg is not None:
        flip = np.deg2rad(scan.flip_deg)
        recovery = np.sin(flip) * recovery / (1 - np.cos(flip) * np.exp(-scan.tr_ms / t1))
    density = tissue.density * (1 - tissue.fat * (1 - scan.fat_left))
    return np.asarray(density * recovery * np.exp(-scan.te_ms / t2), dtype=np.float32)


def white_signal(scan: Scan, tissues: Mapping[str, Tissue]) -> float:
    """Signal of plain white matter: what noise and contrasts are relative to."""
    white = tissues["white"]
    one = [np.array([value], dtype=np.float32) for value in (white.t1_ms, white.t2_ms, white.gadolinium_mmol_l)]
    return float(signal(scan, white, *one)[0])


def draw_tissues(rng: np.random.Generator) -> dict[str, Tissue]:
    """One patient's tissues: the table, with what varies between patients."""
    # Clipped, else the oedema of one patient in fifty would be as dark as white matter; of the real ones none is.
    common = rng.standard_normal(2).clip(-1.7, 1.7) * _TUMOUR_BETWEEN
    drawn = {}
    for name, tissue in TISSUES.items():
        own = _correlated(*rng.standard_normal(2).clip(-1.7, 1.7)) * np.array(tissue.between[:2])
        t1, t2 = own + (common if name in _TUMOUR else 0.0)
        gadolinium = tissue.gadolinium_mmol_l * np.exp(tissue.between[2] * rng.standard_normal())
        drawn[name] = Tissue(
            tissue.t1_ms * float(np.exp(t1)),
            tissue.t2_ms * float(np.exp(t2)),
            tissue.density,
            float(gadolinium),
            tissue.between,
            tissue.within,
        )
    return drawn


def draw_scans(rng: np.random.Generator) -> dict[str, Scan]:
    """One examination: timing, noise, slices and scale differ between scanners, and between sequences of one scanner."""
    scans = {}
    for name, (tr, te, ti) in _PROTOCOL.items():
        jitter = np.exp(0.05 * rng.standard_normal(3).clip(-2, 2))
        thick = bool(rng.uniform() < 0.6)
        scans[name] = Scan(
            tr_ms=tr * float(jitter[0]),
            te_ms=te * float(jitter[1]),
            ti_ms=None if ti is None else ti * float(1 + 0.3 * (jitter[2] - 1)),  # TI is set to null CSF, so it hardly varies
            contrast=name == "t1ce",
            gain=float(4000 * np.exp(0.5 * rng.uniform(-1.7, 1.7))),
            noise=_NOISE[name] * float(rng.uniform(0.6, 1.5)),
            slice_mm=float(rng.uniform(2.5, 5.0)) if thick else 1.0,
            slice_axis=2 if rng.uniform() < 0.75 else int(rng.integers(2)),
            bias=float(rng.uniform(0.02, 0.10)),
        )
    return scans


@dataclass(frozen=True)
class Texture:
    """Random fields on the points of the brain: how T1, T2 and uptake vary within a tissue."""

    t1: Floats
    t2: Floats
    uptake: Floats


def draw_texture(rng: np.random.Generator, axes: Axes, inside: Mask) -> Texture:
    """Fields of unit variance at the points `inside` a grid: fine grain on coarse blotches."""

    def draw() -> Floats:
        fine = smooth_field(rng, 9.0, low_pass=True).on(axes)[inside]
        return np.asarray(0.75 * fine + 0.66 * smooth_field(rng, 30.0).on(axes)[inside], dtype=np.float32)

    t1, t2 = _correlated(draw(), draw())
    return Texture(t1, t2, draw())


def mix(
    scan: Scan, tissues: Mapping[str, Tissue], fractions: Mapping[str, Floats], texture: Texture, wetness: Floats
) -> Floats:
    """Noise-free signal (N,) of points that hold several tissues: the sum of their signals by share (partial volume).

    `wetness` (N,) dries the oedema towards its edge.
    """
    total = np.zeros_like(wetness)
    for name, share in fractions.items():
        (there,) = np.nonzero(share > 1e-3)
        tissue, within = tissues[name], tissues[name].within
        t1 = tissue.t1_ms * np.exp(within[0] * texture.t1[there])
        t2 = tissue.t2_ms * np.exp(within[1] * texture.t2[there])
        if name == "oedema":
            dry = 1 - wetness[there]
            t1, t2 = t1 * (1 - 0.06 * dry), t2 * (1 - 0.10 * dry)
        uptake = tissue.gadolinium_mmol_l * np.exp(within[2] * texture.uptake[there])
        total[there] += share[there] * signal(scan, tissue, t1, t2, uptake)
    return total


def acquire(
    rng: np.random.Generator,
    scan: Scan,
    truth: Floats,
    brain: Mask,
    axes: Axes,
    white: float,
    reach_mm: Reach = HEAD_REACH_MM,
) -> Floats:
    """What the scanner makes of a noise-free signal: slice profile, receive field, Rician noise, integers.

    Args:
        rng: for receive field and noise.
        scan: the sequence.
        truth: (D, H, W) noise-free signal, zero outside the brain.
        brain: (D, H, W) the brain; outside it the result is 0, as after skull stripping.
        axes: coordinates of the grid in mm.
        white: signal that noise is relative to, of white matter in the brain.
        reach_mm: of the receive field.
    """
    image = _thick_slices(scan, truth, brain, axes)
    fields = [smooth_field(rng, wavelength, reach_mm=reach_mm) for wavelength in (150.0, 70.0)]
    image = image * np.exp(scan.bias * (0.8 * fields[0].on(axes) + 0.4 * fields[1].on(axes)))
    sigma = scan.noise * white
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    image = np.hypot(real, sigma * rng.standard_normal(image.shape, dtype=np.float32))
    numbers = np.clip(np.rint(image * scan.gain), 1, 32000)
    return np.where(brain, numbers, 0).astype(np.float32)


def _thick_slices(scan: Scan, truth: Floats, brain: Mask, axes: Axes) -> Floats:
    """Average over the slice thickness, within the brain only: what lies outside was not yet stripped when it was scanned."""
    from scipy.ndimage import gaussian_filter1d

    places = axes[scan.slice_axis]
    if len(places) < 2:
        return truth
    sigma = scan.slice_mm / 2.355 / float(places[1] - places[0])
    if sigma < 0.35:
        return truth
    total = gaussian_filter1d(truth, sigma, axis=scan.slice_axis, mode="nearest")
    weight = gaussian_filter1d(brain.astype(np.float32), sigma, axis=scan.slice_axis, mode="nearest")
    return np.asarray(np.where(brain, total / np.maximum(weight, 1e-3), 0), dtype=np.float32)


def _correlated(first: Floats | float, second: Floats | float) -> Floats:
    """Two independent unit values -> two of correlation `_WATER`."""
    return np.asarray([first, _WATER * first + np.sqrt(1 - _WATER**2) * second], dtype=np.float32)
