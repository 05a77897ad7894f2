"""One HAD-Net iteration (teacher, student, critic; both updates): this package against the authors' arithmetic, in one run.

    python benchmarks/hadnet_iteration.py                                          # 96^3, width 16, one thread: minutes
    python benchmarks/hadnet_iteration.py --size 160 192 160 --width 32 --threads 2 --repetitions 1

The authors' arithmetic is written here from its description: plain layers in NCDHW and single precision, upsampled maps and
concatenations made, the critic's gradients computed in the student's turn and thrown away, the critic's pass on the student
made twice, the default memory allocator. Ours is `modistill.methods.had_net`. How both are measured, and what is checked first,
is said in `iteration.py`; the check has no dropout. Gradients are compared in `tests/networks`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from iteration import Comparison, Losses
from modistill.data.batch import Batch
from modistill.methods.had_net import HADNet

MODALITIES, AVAILABLE = ("flair", "t1ce", "t1", "t2"), ("flair", "t1", "t2")
CLASS_WEIGHTS = (1.0, 59.4507, 23.3190, 71.8481)
TERMS = ("student/segmentation", "student/adversarial", "critic/on_teacher", "critic/on_student")


class PlainEncoder(nn.Module):
    """Dropout, then twice convolution, instance norm, LeakyReLU."""

    def __init__(self, into: int, middle: int, out: int, p: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(p)
        self.conv1, self.norm1 = nn.Conv3d(into, middle, 3, padding=1), nn.InstanceNorm3d(middle, affine=True)
        self.conv2, self.norm2 = nn.Conv3d(middle, out, 3, padding=1), nn.InstanceNorm3d(out, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = functional.leaky_relu(self.norm1(self.conv1(self.dropout(x))), inplace=True)
        return functional.leaky_relu(self.norm2(self.conv2(x)), inplace=True)


class PlainDecoder(nn.Module):
    """Upsampling, dropout of both inputs, two convolutions added; norm, LeakyReLU, and once more."""

    def __init__(self, into: int, out: int, p: float) -> None:
        super().__init__()
        self.skip_dropout, self.deep_dropout = nn.Dropout3d(p), nn.Dropout3d(p)
        self.skip = nn.Conv3d(into, into, 3, padding=1, bias=False)
        self.deep, self.norm1 = nn.Conv3d(into, into, 3, padding=1), nn.InstanceNorm3d(into, affine=True)
        self.conv2, self.norm2 = nn.Conv3d(into, out, 3, padding=1), nn.InstanceNorm3d(out, affine=True)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        """See the class."""
        deep = functional.interpolate(deep, skip.shape[2:])
        x = self.skip(self.skip_dropout(skip)) + self.deep(self.deep_dropout(deep))
        x = functional.leaky_relu(self.norm1(x), inplace=True)
        return functional.leaky_relu(self.norm2(self.conv2(x)), inplace=True)


class PlainUNet(nn.Module):
    """Logits, and the pairs of maps that the critic sees."""

    def __init__(self, modalities: int, k: int, p: float) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = (
            PlainEncoder(modalities, k, k, 0),
            PlainEncoder(k, 2 * k, 2 * k, p),
            PlainEncoder(2 * k, 4 * k, 4 * k, p),
        )
        self.d4, self.c5 = PlainEncoder(4 * k, 8 * k, 8 * k, p), PlainEncoder(8 * k, 16 * k, 8 * k, p)
        self.u4, self.u3 = PlainDecoder(8 * k, 4 * k, p), PlainDecoder(4 * k, 2 * k, p)
        self.u2, self.u1 = PlainDecoder(2 * k, k, p), PlainDecoder(k, k, p)
        self.out = nn.Conv3d(k, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """See the class."""
        d1 = self.d1(x)
        d2 = self.d2(functional.max_pool3d(d1, 2))
        d3 = self.d3(functional.max_pool3d(d2, 2))
        d4 = self.d4(functional.max_pool3d(d3, 2))
        c5 = self.c5(functional.max_pool3d(d4, 2))
        u4 = self.u4(d4, c5)
        u3 = self.u3(d3, u4)
        u1 = self.u1(d1, self.u2(d2, u3))
        return self.out(u1), [(d2, u3), (d3, u4), (d4, c5)]


class PlainCritic(nn.Module):
    """Patch logits; everything it sees is concatenated."""

    def __init__(self, into: int, k: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(into, 4 * k, 4, 2, 1), nn.Conv3d(8 * k, 8 * k, 4, 2, 1)
        self.conv3, self.conv4 = nn.Conv3d(16 * k, 16 * k, 4, 2, 1), nn.Conv3d(32 * k, 32 * k, 4, 2, 1)
        self.out = nn.Conv3d(32 * k, 1, 4, 1, 1, bias=False)

    def forward(self, logits: Tensor, images: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """See the class."""
        x = functional.leaky_relu(self.conv1(torch.cat([logits, images], 1)), 0.2, inplace=True)
        for conv, (encoder, decoder) in zip((self.conv2, self.conv3, self.conv4), pairs, strict=True):
            x = torch.cat([x, encoder, functional.interpolate(decoder, encoder.shape[2:])], 1)
            x = functional.leaky_relu(functional.instance_norm(conv(x)), 0.2, inplace=True)
        return self.out(x)


def authors(method: HADNet, batch: Batch, options: argparse.Namespace) -> Iterator[Losses]:
    """Iterations in the authors' arithmetic, from the weights of `method`; each yields its losses."""
    teacher, student = (
        PlainUNet(4, options.width, options.dropout).requires_grad_(False),
        PlainUNet(3, options.width, options.dropout),
    )
    critic = PlainCritic(7, options.width)
    for plain, ours in ((teacher, method.teacher), (student, method.student), (critic, method.critic)):
        plain.load_state_dict(ours.state_dict())
    del method, ours
    of_student, of_critic = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (student, critic))
    images, labels, weights = batch.available, batch.labels, torch.tensor(CLASS_WEIGHTS)
    while True:
        with torch.no_grad():
            t, f_t = teacher(batch.all)
        s, f_s = student(images)
        segmentation = functional.cross_entropy(s, labels, weights)
        adversarial = 0.2 * (critic(s, images, f_s) - 1).square().mean()
        of_student.zero_grad()
        (segmentation + adversarial).backward()
        of_student.step()

        of_critic.zero_grad()
        on_teacher = (critic(t, images, f_t) - 1).square().mean()
        on_student = critic(s.detach(), images, [(a.detach(), b.detach()) for a, b in f_s]).square().mean()
        (on_teacher + on_student).backward()
        of_critic.step()
        losses = (segmentation, adversarial, on_teacher, on_student)
        yield {name: loss.item() for name, loss in zip(TERMS, losses, strict=True)}


def build(options: argparse.Namespace) -> tuple[HADNet, Batch]:
    """HAD-Net whose critic never rests, and one patch."""
    labels = torch.randint(4, (1, *options.size))
    images = torch.randn(1, 4, *options.size) + labels[:, None]
    batch = Batch(images, labels, torch.ones(1, 4, dtype=torch.bool), MODALITIES, AVAILABLE, ("made",))
    shape = {"width": options.width, "dropout": options.dropout}
    return HADNet(MODALITIES, AVAILABLE, class_weights=CLASS_WEIGHTS, critic_rests_above=1.0, **shape), batch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dropout", type=float, default=0.2)
    small = {"size": [48, 48, 48], "width": 8, "dropout": 0.0}
    Comparison("hadnet_iteration", build, authors, small).main(parser, (96, 96, 96), 16)
