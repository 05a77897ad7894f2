"""One UTAD-Net iteration (five rounds of both critics, one of the student): this package against the authors' arithmetic.

    python benchmarks/utad_iteration.py                                  # 128x128, width 16, 8 slices, one thread: minutes
    python benchmarks/utad_iteration.py --width 64 --threads 2 --repetitions 1                              # their size

The authors' arithmetic is written here from its description: plain layers in NCHW and single precision, upsampled maps and
concatenations made, a translation with its graph in every round, of which the critics use the values alone, another one in the
student's round, critics' and teacher's gradients computed there and thrown away, the default memory allocator. Ours is
`modistill.methods.utad_net`. How both are measured, and what is checked before, is said in `iteration.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from iteration import Comparison, Losses
from modistill.data.batch import Batch
from modistill.methods.base import Turn
from modistill.methods.utad_net import UTADNet

MODALITIES = ("flair", "t1", "t1ce", "t2")
LEVELS, CRITIC_ROUNDS, SLICES = 4, 5, 8


class PlainUnit(nn.Module):
    """Convolution, instance norm, LeakyReLU."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = (
            nn.Conv2d(into, out, 3, padding=1),
            nn.InstanceNorm2d(out),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return functional.leaky_relu(self.norm(self.conv(x)), inplace=True)


class PlainEncoder(nn.Module):
    """Two units a level, max pooling between the levels."""

    def __init__(self, into: int, k: int) -> None:
        super().__init__()
        widths = [into, *(k * 2**level for level in range(LEVELS + 1))]
        self.levels = nn.ModuleList(nn.Sequential(PlainUnit(i, o), PlainUnit(o, o)) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        maps = [self.levels[0](x)]
        for level in self.levels[1:]:
            maps.append(level(functional.max_pool2d(maps[-1], 2)))
        return maps


class PlainFusion(nn.Module):
    """Sum, product and maximum, and two convolutions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3 * n, n, 3, padding=1), nn.BatchNorm2d(n)
        self.conv2, self.norm2 = nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See the class."""
        x = functional.leaky_relu(self.norm1(self.conv1(torch.cat([a + b, a * b, torch.max(a, b)], 1))), 0.1, inplace=True)
        return functional.leaky_relu(self.norm2(self.conv2(x)), 0.1, inplace=True)


class PlainDecoder(nn.Module):
    """Upsampling, a unit, concatenation, two units; at last a convolution and tanh."""

    def __init__(self, k: int) -> None:
        super().__init__()
        widths = [k * 2**level for level in reversed(range(LEVELS))]
        self.up = nn.ModuleList(PlainUnit(2 * n, n) for n in widths)
        self.levels = nn.ModuleList(nn.Sequential(PlainUnit(2 * n, n), PlainUnit(n, n)) for n in widths)
        self.out = nn.Conv2d(k, 1, 1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """See the class."""
        for up, units, skip in zip(self.up, self.levels, reversed(skips), strict=True):
            x = up(functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
            x = units(torch.cat([skip, x], 1))
        return torch.tanh(self.out(x))


class PlainWhole(nn.Module):
    """All but the tumour's decoder: what a teacher does."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.encoder, self.tumour_encoder = PlainEncoder(5, k), PlainEncoder(5, k)
        self.fusion, self.decoder = PlainFusion(k * 2**LEVELS), PlainDecoder(k)

    def encode(self, x: Tensor, tumour: Tensor, wanted: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The map in which both encoders meet, and the skips of either."""
        code = functional.one_hot(wanted, 4).float()[:, :, None, None].repeat(1, 1, *x.shape[2:])
        *skips, lowest = self.encoder(torch.cat([x, code], 1))
        *tumour_skips, of_tumour = self.tumour_encoder(torch.cat([tumour, code], 1))
        return self.fusion(lowest, of_tumour), skips, tumour_skips

    def forward(self, x: Tensor, tumour: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        fused, skips, _ = self.encode(x, tumour, wanted)
        return self.decoder(fused, skips), fused


class PlainGenerator(nn.Module):
    """Both branches."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.whole, self.tumour_decoder = PlainWhole(k), PlainDecoder(k)

    def forward(self, x: Tensor, tumour: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        fused, skips, tumour_skips = self.whole.encode(x, tumour, wanted)
        return self.whole.decoder(fused, skips), self.tumour_decoder(fused, tumour_skips), fused


class PlainCritic(nn.Module):
    """Strided convolutions and two heads."""

    def __init__(self, k: int, side: int) -> None:
        super().__init__()
        count = side.bit_length() - 2
        widths = [1, *(k * 2**layer for layer in range(count))]
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1) for i, o in pairwise(widths))
        self.realism = nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)
        self.name = nn.Conv2d(widths[-1], 4, side // 2**count, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        for number, layer in enumerate(self.layers):
            x = functional.leaky_relu(layer(x), 0.01 if number else 0.001, inplace=True)
        return self.realism(x), self.name(x)[:, :, 0, 0]


class Drawn(UTADNet):
    """UTAD-Net whose every round draws the numbers that the other side draws."""

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """See `Method`."""
        torch.manual_seed(int(self.rounds))
        return super().losses(batch)


def authors(method: UTADNet, batch: Batch, options: argparse.Namespace) -> Iterator[Losses]:
    """Rounds in the authors' arithmetic, from the weights of `method`; each yields its losses."""
    generator, teacher = PlainGenerator(options.width), PlainWhole(options.width)
    teacher.load_state_dict(method.teacher.whole.state_dict())
    teacher.eval()
    generator.load_state_dict(method.generator.state_dict())
    critics = {name: PlainCritic(options.width, options.size[0]) for name in ("whole", "tumour")}
    for name, critic in critics.items():
        critic.load_state_dict(method.critics[name].state_dict())
    del method
    rate = {"lr": 1e-4, "betas": (0.9, 0.999)}
    of_critics = {name: torch.optim.Adam(critic.parameters(), **rate) for name, critic in critics.items()}
    of_generator = torch.optim.Adam(generator.parameters(), **rate)

    def cut(x: Tensor) -> Tensor:
        return (x + 1) / 2 * mask * 2 - 1

    mask, m = (batch.labels[:, None] > 0).float(), batch.presence.int().argmax(1)
    x = batch.images[torch.arange(len(m)), m][:, None] * 2 - 1
    t = cut(x)
    number = 0
    while True:
        torch.manual_seed(number)
        number += 1
        k = m[torch.randperm(len(m))]
        losses: dict[str, Tensor] = {}
        whole, tumour, _ = generator(x, x, k)
        for name, real, fake in ("whole", x, whole.detach()), ("tumour", t, tumour.detach()):
            critic, player = critics[name], f"critics.{name}"
            realism, names = critic(real)
            share = torch.rand(len(x), 1, 1, 1)
            between = (share * real + (1 - share) * fake).requires_grad_()
            realism_between, _ = critic(between)
            ones = torch.ones_like(realism_between)
            (slope,) = torch.autograd.grad(realism_between, between, ones, retain_graph=True, create_graph=True)
            terms = {
                f"{player}/real": -realism.mean(),
                f"{player}/fake": critic(fake)[0].mean(),
                f"{player}/modality": functional.cross_entropy(names, m),
                f"{player}/penalty": 10 * (slope.flatten(1).square().sum(1).sqrt() - 1).square().mean(),
            }
            of_critics[name].zero_grad()
            sum(terms.values()).backward()
            of_critics[name].step()
            losses |= terms
        if number % CRITIC_ROUNDS == 0:
            whole, tumour, fused = generator(x, x, k)
            back, tumour_back, _ = generator(whole, whole, m)
            taught, taught_fused = teacher(x, t, k)
            realism, names = critics["whole"](whole)
            tumour_realism, tumour_names = critics["tumour"](tumour)
            terms = {
                "generator/adversarial": -realism.mean(),
                "generator/modality": functional.cross_entropy(names, k),
                "generator/reconstruction": 10 * (x - back).abs().mean(),
                "generator/adversarial_tumour": -tumour_realism.mean(),
                "generator/modality_tumour": functional.cross_entropy(tumour_names, k),
                "generator/local_consistency": 10 * (tumour - cut(whole)).abs().mean(),
                "generator/local_reconstruction": 10 * (t - tumour_back).abs().mean(),
                "generator/feature": 10 * (fused - taught_fused).abs().mean(),
                "generator/image": 10 * (whole - taught).abs().mean(),
            }
            of_generator.zero_grad()
            sum(terms.values()).backward()
            of_generator.step()
            losses |= terms
        yield {name: loss.item() for name, loss in losses.items()}


def build(options: argparse.Namespace) -> tuple[UTADNet, Batch]:
    """UTAD-Net beside a teacher with weights of its own, and two slices of each modality."""
    side, other = options.size
    if side != other:
        raise SystemExit("the critics judge squares")
    presence = torch.eye(4, dtype=torch.bool).repeat(SLICES // 4, 1)
    images = torch.rand(SLICES, 4, side, side) * presence[:, :, None, None]
    labels = torch.zeros(SLICES, side, side, dtype=torch.int64)
    labels[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    method = Drawn(MODALITIES, width=options.width, side=side, critic_rounds=CRITIC_ROUNDS)
    method.begin()
    return method, Batch(images, labels, presence, MODALITIES, MODALITIES, tuple("abcdefgh"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    small = {"size": [64, 64], "width": 8, "iterations": 1}
    Comparison("utad_iteration", build, authors, small, rounds=CRITIC_ROUNDS, warm_up=1).main(parser, (128, 128), 16)
