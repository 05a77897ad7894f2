"""Phantom patients: in memory, or a cohort on disk in BraTS folders, so that everything downstream is the real path."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from modistill.data.case import Case
from modistill.data.volume import Native, Volume
from modistill.errors import CaseError, FileError, RecipeError
from modistill.files import atomic_folder, read_json, write_json, write_text
from modistill.phantom.anatomy import Tissues, draw_anatomy, fill
from modistill.phantom.noise import Axes, Floats, smooth_field
from modistill.phantom.sequences import MODALITIES, TISSUES, acquire, draw_scans, draw_texture, draw_tissues, mix, signal
from modistill.phantom.tumour import Lesion, draw_tumour

VERSION = 1


def spacing_for(shape):
    used = [r / n for r, n in zip((148.0, 184.0, 155.0), shape) if n > 1]
    return max(used)


def make(index, seed, shape):
    sp = spacing_for(shape)
    rng = lambda part: np.random.default_rng([seed, index, part])
    anatomy = draw_anatomy(rng(0)); tumour = draw_tumour(rng(1), anatomy)
    axes = tuple(((np.arange(n) - (n - 1) / 2) * sp).astype(np.float32) for n in shape)
    X, Y, Z = np.meshgrid(*axes, indexing="ij", sparse=True)
    near = (X/72)**2+(Y/92)**2+(Z/76)**2 < 1.0
    near[...] = True
    x, y, z = (np.broadcast_to(c, shape)[near] for c in (X, Y, Z))
    hull = anatomy.hull(x, y, z)
    keep = hull > -4
    near[near] = keep
    x, y, z, hull = x[keep], y[keep], z[keep], hull[keep]
    brain = anatomy.at(*tumour.displace(x, y, z, hull), sp)
    les = tumour.at(x, y, z, brain, sp)
    rngt = rng(2)
    tissues, scans = draw_tissues(rngt), draw_scans(rngt)
    texture = draw_texture(rngt, axes, near)
    a, b = smooth_field(rngt, 18.0).on(axes)[near], smooth_field(rngt, 18.0).on(axes)[near]
    vessel = fill(0.7 - np.hypot(a, b) * 18 / 6.28, sp) * (brain.inside < 14) * brain.csf
    dura = fill(1.0 - np.abs(brain.brain - .5), sp) * np.clip(a, 0, 1) * brain.csf * .6
    vessel = np.maximum(vessel, dura)
    h = 1 - les.necrosis - les.solid - les.enhancing - les.oedema
    # oedema takes white only
    core = les.necrosis + les.solid + les.enhancing
    rest = np.clip(1 - core, 0, 1)
    ed = les.oedema
    w = np.clip(brain.white * rest - ed, 0, 1)
    d = np.clip(brain.deep * rest - np.clip(ed - brain.white * rest, 0, 1), 0, 1)
    csf = brain.csf * (1 - np.clip(vessel, 0, 1) - brain.choroid * (1 - vessel))
    fr = dict(white=w, grey=brain.grey * rest, deep=d, csf=np.clip(brain.csf - vessel - brain.choroid, 0, 1) * rest, vessel=vessel * rest,
              choroid=brain.choroid * rest, necrosis=les.necrosis, solid=les.solid, enhancing=les.enhancing, oedema=ed)
    mask = np.zeros(shape, bool); mask[near] = brain.brain > 0
    images = {}
    for m, name in enumerate(MODALITIES):
        t = np.zeros(shape, np.float32); t[near] = mix(scans[name], tissues, fr, texture, les.wetness)
        one = [np.array([v]) for v in (tissues["white"].t1_ms, tissues["white"].t2_ms, tissues["white"].gadolinium_mm)]
        white = float(signal(scans[name], tissues["white"], *one)[0])
        images[name] = acquire(rng(10 + m), scans[name], t * mask, mask, axes, white)
    labels = np.zeros(shape, np.uint8); labels[near] = les.labels * (brain.brain > 0)
    frs = {}
    for k, v in fr.items():
        o = np.zeros(shape, np.float32); o[near] = v; frs[k] = o * mask
    return images, labels, frs, tumour, sp
