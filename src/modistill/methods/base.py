"""What a method is: networks, the turns in which they learn, and how to segment afterwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from modistill.data.batch import Batch
from modistill.errors import ModelError

__all__ = [
    "AnySubsetMethod",
    "Guidance",
    "Method",
    "OptimizerFactory",
    "Terms",
    "TranslationMethod",
    "Turn",
    "UnpairedTranslation",
    "bounded",
    "build_translation",
    "class_weights_buffer",
    "frozen",
    "nested",
    "signed",
]

Network = TypeVar("Network", bound=nn.Module)

Terms: TypeAlias = Mapping[str, Tensor]
Turn: TypeAlias = tuple[str, Terms]
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Guidance: TypeAlias = Callable[[Tensor], Terms]
"""More terms for a translator, from its translation of the source images (B, 1, *spatial) in [-1, 1]."""


class Method(nn.Module):
    """A plain module with players, one generator of turns, and a way to segment.

    Attributes:
        players: path of a submodule -> how it is optimised (a call from parameters to an optimiser). What is not listed here
            never learns.
        reads: path of a network -> names of the modalities it reads, in channel order. These are also the networks that can
            start from the weights of another run (`start_from` in a recipe).
        deployed: path of the network that `segment` uses; only its weights go into `model.safetensors`.
        silent: paths of networks that stay in eval mode while the others train, so that their dropout does.
        dims: of its networks: 3 for volumes, 2 for axial slices.
        targets: modalities of the images that the deployed network makes; none if it segments.
        halvings: how often its networks halve a map; what they segment is padded to 2^halvings voxels, one axis to twice that.
        learnt_before: paths of networks that never learn here, and so must start from another run.
        domains: of an unpaired training, the modalities of each domain, that of the patients to come first. A batch then holds
            samples of either, of different cases; `batch.having(domain)` gives them.
    """

    players: Mapping[str, OptimizerFactory]
    reads: Mapping[str, tuple[str, ...]]
    deployed: str
    silent: tuple[str, ...] = ()
    dims: int = 3
    targets: tuple[str, ...] = ()
    halvings: int = 4
    learnt_before: tuple[str, ...] = ()
    domains: tuple[tuple[str, ...], ...] = ()

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the silent networks."""
        super().train(mode)
        for path in self.silent:
            self.get_submodule(path).eval()
        return self

    @property
    def available(self) -> tuple[str, ...]:
        """What a patient must have, in the channel order of `segment`."""
        return self.reads[self.deployed]

    @property
    def modalities(self) -> tuple[str, ...]:
        """What training reads: all that any network does, the most informed network's order first.

        A training case must have all of it, unless the method serves any subset or learns from unpaired domains.
        """
        longest, *others = sorted(self.reads.values(), key=len, reverse=True)
        return tuple(dict.fromkeys(name for names in (longest, *others, *self.domains) for name in names))

    def record(self) -> dict[str, Any]:
        """What a run keeps beside its recipe, such as the digest of weights that came from a file: plain values."""
        return {}

    def begin(self) -> None:
        """Called once before a new training, when networks that start from other runs have their weights."""

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[Turn]:
        """Play one round: each `yield` names who learns and from which terms (scalars, summed).

        The engine updates that player before the next line runs. Two rules: a decision taken from data goes through
        `modistill.distributed.rank_mean`, so that all ranks take the same turns; and no `yield` inside a `with`.
        """

    @abstractmethod
    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial) from the available modalities (B, A, *spatial), channel order `available`."""

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """A method that segments with the weights of this one's deployed network; of these arguments, as of the constructor.

        Methods with large networks that only train build no more here than what segments.
        """
        return cls(**arguments)


class TranslationMethod(Method):
    """A method that makes images of another modality. It segments nothing.

    Of a patient it reads one modality, any of `available` but the one that is made; what it makes is one of `targets`.

    Attributes:
        reads_tumour: whether `translate` can be given the mask of the tumour as a second channel: a teacher's privilege.
    """

    reads_tumour: bool = False

    @abstractmethod
    def translate(self, images: Tensor, target: str) -> Tensor:
        """Images (B, 1, *spatial) of the modality `target` from those of another one, both in [0, 1]."""

    def segment(self, images: Tensor) -> Tensor:
        """Refused.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"{type(self).__name__} translates into {' or '.join(self.targets)} and segments nothing",
            remedy="modistill translate",
        )


class UnpairedTranslation(TranslationMethod):
    """A translation learnt from images of different patients, which a segmentor may guide.

    Attributes:
        source: modality that is translated, which the patients have; the first of `domains`.
        target: modality it is translated into; the second.
    """

    source: str
    target: str

    @abstractmethod
    def losses(self, batch: Batch, guidance: Guidance | None = None) -> Generator[Turn]:
        """The turns of the translation; `guidance` adds terms to that of its generators."""

    def watch(self, teacher: nn.Module) -> None:
        """Look at the teacher of the method this is a part of: when it is built, and after each of the teacher's turns."""

    @abstractmethod
    def to_target(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """Images of the source as such of the target, both (B, 1, *spatial) in [-1, 1].

        Args:
            source: what is translated.
            target: images of others, of whose style the translation is to be, where a translator knows of styles.
        """

    @abstractmethod
    def to_source(self, target: Tensor, source: Tensor | None = None) -> Tensor:
        """The way back, alike."""

    def translate(self, images: Tensor, target: str) -> Tensor:
        """See `TranslationMethod`: there is one target."""
        return (self.to_target(signed(images)) + 1) / 2


class AnySubsetMethod(Method):
    """A method that serves every non-empty subset of the modalities its deployed network reads.

    Training cases, too, may lack some of them: `batch.presence` tells which, case by case.
    """

    @abstractmethod
    def segment_subset(self, images: Tensor, presence: Tensor) -> Tensor:
        """Logits (B, C, *spatial) from what each case has.

        Args:
            images: (B, A, *spatial), channel order `available`; what stands in a channel that is not there changes no bit.
            presence: (B, A) bool, at least one true in every row.
        """

    def for_patient(self, has: Sequence[bool]) -> Callable[[Tensor], Tensor]:
        """`segment` for windows (B, A, *spatial) of one patient, who `has` (A,) these modalities."""

        def segment(images: Tensor) -> Tensor:
            presence = torch.tensor(has, dtype=torch.bool, device=images.device)
            return self.segment_subset(images, presence.expand(len(images), -1))

        return segment

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial) of cases that have all modalities."""
        return self.segment_subset(images, torch.ones(images.shape[:2], dtype=torch.bool, device=images.device))


def build_translation(
    name: str, source: str, target: str, dims: int, arguments: Mapping[str, Any] | None
) -> UnpairedTranslation:
    """An unpaired translation of the zoo, as a part of another method.

    Args:
        name: of the method, such as "cyclegan" or "drit".
        source: modality that is translated.
        target: modality it is translated into.
        dims: 2 or 3.
        arguments: the others of its constructor.

    Raises:
        RecipeError: there is no such method, or it does not take an argument.
        ValueError: it is no unpaired translation.
    """
    from modistill.arguments import checked
    from modistill.methods import load_method

    constructor = load_method(name)
    if not issubclass(constructor, UnpairedTranslation):
        raise ValueError(f"translator {name!r} is no unpaired translation: cyclegan and drit are")
    return constructor(source, target, dims=dims, **checked(constructor, arguments or {}, "method.translation"))


def nested(name: str, players: Mapping[str, OptimizerFactory]) -> dict[str, OptimizerFactory]:
    """The players of a part, addressed from the whole.

    Example:
        >>> list(nested("translation", {"generator": torch.optim.Adam}))
        ['translation.generator']
    """
    return {f"{name}.{player}": factory for player, factory in players.items()}


def bounded(factory: OptimizerFactory, norm: float) -> OptimizerFactory:
    """The same optimiser, which bounds the norm of its gradients before every step: for a player who needs it alone."""

    def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        optimizer = factory(held)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(held, norm)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return build


def frozen(network: Network) -> Network:
    """The same network, never to learn again (its dropout still follows train and eval mode)."""
    network.requires_grad_(False)
    return network


def signed(images: Tensor) -> Tensor:
    """Images in [0, 1] as translators and their segmentors read them, in [-1, 1]."""
    return 2 * images - 1


def class_weights_buffer(weights: Sequence[float] | None, classes: int) -> Tensor:
    """(C,) float class weights; ones where none are given.

    Raises:
        ValueError: their number is not `classes`, or one is not positive.
    """
    if weights is None:
        return torch.ones(classes)
    if len(weights) != classes or min(weights) <= 0:
        raise ValueError(f"class_weights needs {classes} positive numbers, it has {list(weights)}")
    return torch.tensor(list(weights), dtype=torch.float32)
