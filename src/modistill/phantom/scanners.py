"""What scanners make of a trunk: Hounsfield units with correlated noise, and MR by the equations of `sequences`.

CT:  HU = sum over tissues of share x (HU + texture), plus Gaussian noise that is correlated over about a voxel, as a
reconstruction kernel leaves it. Its standard deviation is 9 to 25 HU in the body and a quarter of that in the air around it
(seven patients of the soft-tissue sarcoma collection, doi 10.1088/0031-9155/60/14/5471: 6 to 34 HU in muscle, median 17).
MR:  the sum of signals by share (`sequences.mix`), then slice profile, receive field and Rician noise (`sequences.acquire`).
Noise stays outside the body too; nothing is set to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modistill.phantom.noise import Axes, Floats, smooth_field
from modistill.phantom.sequences import Scan, Texture, acquire, mix, signal
from modistill.phantom.substances import Substance
from modistill.phantom.trunk import REACH_MM

__all__ = ["PROTOCOLS", "Protocol", "ct_image", "draw_texture", "mr_image"]

_CT_NOISE_HU = (9.0, 25.0)
_CT_AIR = 0.25  # noise outside the body, relative to inside
_CT_RANGE = (-1024, 3071)
_FAT_LEFT = (0.04, 0.14)  # SPIR never suppresses all fat, and not everywhere alike


@dataclass(frozen=True)
class Protocol:
    """How a sequence is usually run at 1.5 T; each patient's differs by a few per cent.

    Attributes:
        tr_ms, te_ms: repetition and echo time.
        flip_deg: of a spoiled gradient echo; None is a spin echo.
        suppressed: fat is suppressed.
        noise: standard deviation per channel, relative to muscle.
    """

    tr_ms: float
    te_ms: float
    flip_deg: float | None
    suppressed: bool
    noise: float


PROTOCOLS: Mapping[tuple[str, str], Protocol] = {
    ("chest", "mr"): Protocol(4000.0, 95.0, None, False, 0.13),  # T2w turbo spin echo, triggered by breathing
    ("abdomen", "t1"): Protocol(150.0, 4.6, 75.0, False, 0.06),  # in phase: water and fat add up
    ("abdomen", "t2"): Protocol(2500.0, 80.0, None, True, 0.09),  # T2-SPIR
}


def draw_texture(rng: np.random.Generator, axes: Axes) -> Texture:
    """Fields of unit variance on the points of a grid, flat (N,): how T1 and T2 vary within a tissue."""

    def draw() -> Floats:
        fine = smooth_field(rng, 13.0, low_pass=True, reach_mm=REACH_MM).on(axes)
        coarse = smooth_field(rng, 40.0, reach_mm=REACH_MM).on(axes)
        return np.asarray(0.75 * fine + 0.66 * coarse, dtype=np.float32).ravel()

    t1, t2 = draw(), draw()
    return Texture(t1, np.asarray(0.55 * t1 + 0.835 * t2, dtype=np.float32), np.zeros_like(t1))


def ct_image(
    rng: np.random.Generator, tissues: Mapping[str, Substance], shares: Mapping[str, Floats], texture: Floats
) -> Floats:
    """A CT of a grid.

    Args:
        rng: for the noise.
        tissues: of this patient.
        shares: tissue -> fraction (D, H, W).
        texture: (D, H, W) field of unit variance.

    Returns:
        (D, H, W) whole Hounsfield units.
    """
    from scipy.ndimage import gaussian_filter

    total = np.zeros_like(texture)
    for name, share in shares.items():
        total += share * (tissues[name].hu + tissues[name].hu_within * texture)
    noise = gaussian_filter(rng.standard_normal(texture.shape, dtype=np.float32), (0.6, 0.6, 0.0))
    noise *= float(rng.uniform(*_CT_NOISE_HU)) / noise.std()
    noise *= 1 - (1 - _CT_AIR) * shares["air"]
    return np.asarray(np.rint(np.clip(total + noise, *_CT_RANGE)), dtype=np.float32)


def mr_image(
    rng: np.random.Generator,
    protocol: Protocol,
    tissues: Mapping[str, Substance],
    shares: Mapping[str, Floats],
    texture: Texture,
    axes: Axes,
) -> Floats:
    """One MR sequence of a grid, as whole numbers of an arbitrary unit (D, H, W).

    Args:
        rng: for timing, scale, receive field and noise.
        protocol: the sequence.
        tissues: of this patient.
        shares: tissue -> fraction (D, H, W).
        texture: on the points of the grid.
        axes: of the grid.
    """
    jitter = np.exp(0.04 * rng.standard_normal(2).clip(-2, 2))
    scan = Scan(
        tr_ms=protocol.tr_ms * float(jitter[0]),
        te_ms=protocol.te_ms * (float(jitter[1]) if protocol.flip_deg is None else 1.0),  # the in-phase time is given by nature
        ti_ms=None,
        contrast=False,
        gain=float(3000 * np.exp(0.5 * rng.uniform(-1, 1))),
        noise=protocol.noise * float(rng.uniform(0.7, 1.4)),
        slice_mm=float(rng.uniform(4.0, 7.0)),
        slice_axis=2,
        bias=float(rng.uniform(0.05, 0.15)),
        flip_deg=protocol.flip_deg,
        fat_left=float(rng.uniform(*_FAT_LEFT)) if protocol.suppressed else 1.0,
    )
    shape = next(iter(shares.values())).shape
    flat = {name: share.ravel() for name, share in shares.items()}
    truth = mix(scan, tissues, flat, texture, np.ones(texture.t1.shape, dtype=np.float32)).reshape(shape)
    muscle = tissues["muscle"]
    reference = signal(scan, muscle, *(np.array([value]) for value in (muscle.t1_ms, muscle.t2_ms, 0.0)))
    everywhere = np.ones(shape, dtype=bool)
    return acquire(rng, scan, truth, everywhere, axes, float(reference[0]), REACH_MM)
