"""A trained method, and what it takes to use it on a patient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modistill.data.naming import LabelConvention
from modistill.data.preprocessing import Preprocessing
from modistill.errors import ModelError
from modistill.methods.base import AnySubsetMethod, Method

__all__ = ["Model", "smallest_size"]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained method with what it takes to use it on a patient.

    Attributes:
        name: of the run.
        method: holds weights for the network that segments or translates, and need not hold any others.
        preprocessing: at test time; its modalities are those the method reads.
        convention: what the classes are; class index 1, 2, 3 ... in its order.
        window: voxels (D, H, W) seen at once; None for whole cases.
        source: the file it was loaded from.
        digest: SHA-256 of its weights.
        overlap: of neighbouring windows.
        mirror: axes (0, 1, 2) over which its predictions are mirrored and averaged.
        targets: modality it translates into -> how a real image of it was prepared for training; empty if it segments.

    Raises:
        ModelError: method and preprocessing do not speak of the same channels.
    """

    name: str
    method: Method
    preprocessing: Preprocessing
    convention: LabelConvention
    window: tuple[int, int, int] | None = None
    source: Path | None = None
    digest: str = ""
    overlap: float = 0.5
    mirror: tuple[int, ...] = ()
    targets: Mapping[str, Preprocessing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preprocessing.modalities != self.reads:
            prepared, read = (", ".join(names) for names in (self.preprocessing.modalities, self.reads))
            raise ModelError(f"{self.name} reads {read}, its preprocessing makes {prepared}", file=self.source)

    @property
    def reads(self) -> tuple[str, ...]:
        """The modalities it can make use of, in channel order."""
        return self.method.available

    @property
    def any_subset(self) -> bool:
        """Whether some of these are enough; else a patient must have them all."""
        return isinstance(self.method, AnySubsetMethod)

    def uses(self, available: Collection[str]) -> tuple[str, ...]:
        """Those of the available modalities that it reads, in channel order; none if it cannot serve such a patient."""
        found = tuple(name for name in self.reads if name in available)
        return found if self.any_subset or found == self.reads else ()

    def sources(self, target: str) -> tuple[str, ...]:
        """What it can translate into the target, each by itself, in its own order."""
        return tuple(name for name in self.reads if name != target)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (source, target) that it can translate; none if it segments."""
        return tuple((source, target) for source in self.reads for target in self.method.targets if source != target)

    def demand(self) -> str:
        """What it asks of a patient, in words."""
        return f"{'needs one or more of ' if self.any_subset else 'needs '}{'+'.join(self.reads)}"


def smallest_size(size: Sequence[int], method: Method) -> tuple[int, int, int]:
    """The size (D, H, W) to which a volume must be padded, at least, for the networks of a method to read it.

    Networks of two axes read axial slices. The maps they halve so often must keep two voxels at least.
    """
    least, longest = 2**method.halvings, max(range(method.dims), key=lambda axis: size[axis])
    d, h, w = (1 if axis >= method.dims else 2 * least if axis == longest else least for axis in range(3))
    return d, h, w
