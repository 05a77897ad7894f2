"""U-HVED's network against its table; the Gaussians themselves are tested in `losses/test_gaussian.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modistill.errors import ModelError
from modistill.networks.hved import HVEDUNet, VariationalUNet
from networks.test_hemis import count, plain_decoder, plain_encoder, shaken


def plain_codes(network: HVEDUNet, case: Tensor, there: Tensor) -> list[Tensor]:
    """Means of the products for one case (M, *spatial), from the modalities it has and no others."""
    maps = [plain_encoder(network.encoders[m], case[None, m, None]) for m in range(len(there)) if there[m]]
    found = []
    for scale in zip(*maps, strict=True):
        halves = [x.split(x.shape[1] // 2, 1) for x in scale]
        precisions = [1 / (logvar.clamp(-50, 50).exp() + 1e-7) for _, logvar in halves]
        weighted = [t * mean for t, (mean, _) in zip(precisions, halves, strict=True)]
        found.append(sum(weighted) / (1 + sum(precisions)))
    return found


def test_parameters_of_every_part() -> None:
    """Digest, section 7.1: those of the released checkpoint."""
    with torch.device("meta"):
        vae = VariationalUNet(4, 4)
    assert [count(encoder) for encoder in vae.network.encoders] == [221_560] * 4
    assert count(vae.network.decoder) + count(vae.images) == 364_312
    assert [count(decoder) for decoder in vae.images] == [72_860] * 4
    assert [count(block) for block in vae.network.decoder.blocks] == [55_456, 13_904, 3_496]
    assert (count(vae.network), count(vae)) == (959_112, 1_250_552)


@pytest.mark.parametrize(("dims", "size"), [(3, (16, 17, 16)), (2, (24, 16)), (2, (35, 22))])
def test_equals_the_plain_form(dims: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    vae = shaken(VariationalUNet(3, 4, width=4, dims=dims))
    images = torch.randn(3, 3, *size, dtype=torch.double)
    presence = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])
    codes = [plain_codes(vae.network, case, there) for case, there in zip(images, presence, strict=True)]
    logits, decoded, experts = vae(images, presence)
    expected = torch.cat([plain_decoder(vae.network.decoder, code) for code in codes])
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vae.network(images, presence), logits)
    of_second = torch.cat([plain_decoder(vae.images[1], code) for code in codes])
    torch.testing.assert_close(decoded[:, 1:2], of_second, rtol=1e-6, atol=1e-6)
    assert [len(scale) for scale in experts] == [3] * 4
    assert [scale[0].mean.shape[1] for scale in experts] == [2, 4, 8, 16]


def test_the_log_variance_is_bounded() -> None:
    network = HVEDUNet(1, 2, width=2, dims=2)
    with torch.no_grad():
        network.encoders[0].blocks[0][1].conv.weight.mul_(1e6)
    (expert,) = network.experts(torch.randn(1, 1, 16, 16))[0]
    assert (expert.logvar.min().item(), expert.logvar.max().item()) == (-50, 50)
    assert network(torch.randn(1, 1, 16, 16), torch.tensor([[True]])).isfinite().all()


def test_noise_is_of_each_case() -> None:
    torch.manual_seed(0)
    network = HVEDUNet(2, 3, width=2, dims=2)
    images, presence = torch.randn(2, 2, 16, 16), torch.ones(2, 2, dtype=torch.bool)
    mean = network(images, presence)
    drawn = [network(images, presence, torch.tensor([0.0, 1.0])) for _ in range(2)]
    torch.testing.assert_close(drawn[0][0], mean[0])
    assert not torch.equal(drawn[0][1], drawn[1][1])


def test_what_it_cannot_read() -> None:
    vae = VariationalUNet(2, 2, width=2, dims=2)
    for network in (vae, vae.network):
        with pytest.raises(ModelError, match="without any modality"):
            network(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, dtype=torch.bool))
        with pytest.raises(ModelError, match="3 channels"):
            network(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="width is 3"):
        VariationalUNet(2, 2, width=3)
