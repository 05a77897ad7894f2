"""What every method must do. Nothing here knows a method by name; a new file in `methods/` is tested the day it appears."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from modistill.methods import load_method, method_names
from modistill.methods.base import AnySubsetMethod, Method, TranslationMethod
from modistill.subsets import all_subsets
from modistill.training import TrainingSettings, fit
from samples import RandomBatches, leave_out

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = pytest.mark.parametrize("name", method_names())
SEGMENTING = pytest.mark.parametrize(
    "name", [name for name in method_names() if not issubclass(load_method(name), TranslationMethod)]
)
ANY_SUBSET = pytest.mark.parametrize(
    "name", [name for name in method_names() if issubclass(load_method(name), AnySubsetMethod)]
)
TRANSLATION = {"width": 2, "blocks": 1}
SMALL = {"width": 2, "classes": 4, "blocks": 1, "translation": TRANSLATION, "critic_scales": 1, "content_layers": 0, "above": 3}
SMALL |= {"side": 32, "halvings": 3, "critic_rounds": 2}


def make(name: str, seed: int = 0, **arguments: Any) -> Method:
    """The method with its defaults, at tiny width."""
    method = load_method(name)
    known = inspect.signature(method).parameters
    torch.manual_seed(seed)
    return method(**{key: value for key, value in {**SMALL, **arguments}.items() if key in known})


def noise(method: Method, kind: type[RandomBatches] = RandomBatches, **arguments: Any) -> RandomBatches:
    return kind(method.modalities, method.available, domains=method.domains, **{"size": (32,) * method.dims, **arguments})


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By the first of their names, should a network stand in two places of a method."""
    named: dict[int, tuple[str, torch.Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        named.setdefault(id(value), (name, value.detach().clone()))
    return dict(named.values())


def page(method: Method) -> list[str]:
    """Lines of a method's page, and of those of the methods it is made of, with its name for them in front."""
    lines = inspect.getmodule(type(method)).__doc__.splitlines()
    parts = [(name, part) for name, part in method.named_children() if isinstance(part, Method)]
    return lines + [f"{name}.{line.strip()}" for name, part in parts for line in page(part)]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(**arguments: Any) -> TrainingSettings:
    return TrainingSettings(precision="32", checkpoint_minutes=60, **arguments)


@METHODS
@pytest.mark.parametrize("dims", [2, 3])
def test_every_player_learns_from_named_finite_terms_and_changes_nobody_else(name: str, dims: int) -> None:
    method = make(name, dims=dims).train()
    optimizers = {player: how(list(method.get_submodule(player).parameters())) for player, how in method.players.items()}
    lines = page(method)
    played = set()
    batches = noise(method, size=(32,) * dims, count=6)
    for position in range(6):
        for player, terms in method.losses(batches.batch(0, position)):
            played.add(player)
            for term, value in terms.items():
                assert value.shape == (), f"{player}/{term} is no scalar"
                assert torch.isfinite(value), f"{player}/{term} is {value}"
                described = [line for line in lines if f"{player}/{term} " in line]
                assert described, f"{player}/{term} is not named in the module docstring"
                assert any("Eq" in line or "=" in line for line in described), f"{player}/{term} stands beside no equation"
            before = {key: value for key, value in weights(method).items() if not key.startswith(f"{player}.")}
            own = weights(method.get_submodule(player))
            optimizers[player].zero_grad()
            sum(terms.values()).backward(inputs=list(method.get_submodule(player).parameters()))
            optimizers[player].step()
            after = weights(method)
            assert equal(before, {key: after[key] for key in before}), f"the turn of {player} changed somebody else"
            assert not equal(own, weights(method.get_submodule(player))), f"the turn of {player} changed nothing"
    assert played == set(method.players)


@METHODS
def test_the_docstring_cites_the_paper_and_lists_what_differs(name: str) -> None:
    text = inspect.getmodule(load_method(name)).__doc__
    assert "http" in text
    assert "Differs from" in text


@SEGMENTING
@pytest.mark.parametrize("size", [(32, 32, 32), (33, 37, 35), (17, 45)])
def test_segment_gives_the_same_for_a_batch_and_its_parts(name: str, size: tuple[int, ...]) -> None:
    method = make(name, dims=len(size)).eval()
    batch = noise(method, size=size, batch_size=3).batch(0, 0)
    with torch.inference_mode():
        whole = method.segment(batch.available)
        parts = torch.cat([method.segment(part[None]) for part in batch.available])
    assert whole.shape == (len(batch.cases), SMALL["classes"], *size)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=5e-4)


@SEGMENTING
@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan")])
def test_leak_what_stands_in_a_missing_channel_changes_no_bit(name: str, garbage: float) -> None:
    method = make(name).eval()
    batch = noise(method).batch(0, 0)
    missing = tuple(modality for modality in method.modalities if modality not in method.available)
    with torch.inference_mode():
        assert torch.equal(method.segment(batch.available), method.segment(leave_out(batch, missing, garbage).available))


@ANY_SUBSET
def test_any_subset_what_a_case_lacks_changes_no_bit(name: str) -> None:
    method = make(name).eval()
    batch = noise(method).batch(0, 0)
    for subset in all_subsets(method.available):
        presence = torch.tensor([[modality in subset for modality in method.available]])
        missing = tuple(modality for modality in method.available if modality not in subset)
        with torch.inference_mode():
            found, *others = (
                method.segment_subset(leave_out(batch, missing, garbage).available, presence) for garbage in (0, 1e6, torch.nan)
            )
        assert found.isfinite().all()
        assert all(torch.equal(found, other) for other in others), subset


@ANY_SUBSET
def test_any_subset_is_a_matter_of_each_case_and_never_of_the_batch(name: str) -> None:
    method = make(name).eval()
    batch = noise(method, batch_size=3).batch(0, 0)
    presence = torch.ones(3, len(method.available), dtype=torch.bool)
    presence[0, 0] = presence[1, 1:] = False
    with torch.inference_mode():
        whole = method.segment_subset(batch.available, presence)
        parts = [
            method.segment_subset(images[None], there[None]) for images, there in zip(batch.available, presence, strict=True)
        ]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-3, atol=5e-4)


@ANY_SUBSET
def test_any_subset_training_reads_nothing_that_a_case_lacks(name: str) -> None:
    batch = noise(make(name), batch_size=2).batch(0, 0)
    presence = torch.ones_like(batch.presence)
    presence[0, 1:] = presence[1, 0] = False
    found = []
    for garbage in (0.0, torch.nan):
        images = torch.where(presence[..., None, None, None], batch.images, garbage)
        method = make(name).train()
        torch.manual_seed(5)
        turns = method.losses(replace(batch, images=images, presence=presence))
        found.append([value.item() for _, terms in turns for value in terms.values()])
    assert found[0] == found[1]


@METHODS
def test_interrupted_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole = make(name)
    fit(whole, noise(whole), tmp_path / "whole", settings(epochs=3))
    first = make(name)
    fit(first, noise(first), tmp_path / "parts", settings(epochs=1))
    second = make(name, seed=1)
    fit(second, noise(second), tmp_path / "parts", settings(epochs=3), resume=True)
    assert equal(weights(whole), weights(second))
    logs = [(tmp_path / part / "log.csv").read_text() for part in ("whole", "parts")]
    values = [[line.split(",")[3:] for line in log.splitlines()] for log in logs]
    assert values[0] == values[1]


@METHODS
def test_fit_a_plain_loop_and_lightning_give_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for drawn, certain in {"randn_like": torch.ones_like, "rand_like": torch.ones_like, "randperm": torch.arange}.items():
        monkeypatch.setattr(torch, drawn, certain)  # a loop of one's own need not seed every step as `fit` does
    alone = partial(make, name, dropout=0.0, mode_seeking_weight=0.0)  # the latter divides by how far draws lie apart
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns of what it would do by itself
        import pytorch_lightning as lightning

        adapter = example("lightning_adapter").LightningAdapter(alone())
        data = [noise(adapter.method).batch(0, position) for position in range(2)]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet)
        trainer.fit(adapter, torch.utils.data.DataLoader(data, batch_size=None))
    fitted = alone()
    fit(fitted, noise(fitted), tmp_path, settings(epochs=1))
    plain = alone()
    example("plain_loop").train(plain, data)
    assert equal(weights(plain), weights(fitted))
    assert equal(weights(plain), weights(adapter.method))


# What a rank does with its own share of a batch alone: dropout, batch norm, the history of a critic, the mean of its features.
ALONE = {"history": 0, "contextual_weight": 0.0}
EQUAL = {"dropout": 0.0, "norm": "instance", **ALONE, "translation": {**TRANSLATION, **ALONE}}
# The halves of a batch have different parts to play, or a sample becomes what another is: others on other numbers of ranks.
HALVES = {"drit", "utad_net", "utad_teacher"}
RANKS = """
    import sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    import torch
    from safetensors.torch import save_file
    from test_contract import EQUAL, Doubles, make, noise, settings, weights
    from modistill.training import fit

    name, folder = sys.argv[1], Path(sys.argv[2])
    method = make(name, **EQUAL).double()
    fit(method, noise(method, Doubles, batch_size=2), folder / "run", settings(epochs=1), validate=lambda _: {"score": 0.5})
    if torch.distributed.get_rank() == 0:
        save_file(weights(method), folder / "ranks.safetensors")
"""


@METHODS
def test_two_ranks_equal_one(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), name, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if name in HALVES:
        return
    method = make(name, **EQUAL).double()
    fit(method, noise(method, Doubles, batch_size=2), tmp_path / "one", settings(epochs=1), validate=lambda _: {"score": 0.5})
    ranks = load_file(tmp_path / "ranks.safetensors")
    differences = [(ranks[key] - value).abs().max() for key, value in weights(method).items() if value.numel()]
    assert max(differences) < 1e-7  # two steps of 1e-4 and more were made


class Doubles(RandomBatches):
    """In double precision: where a gradient is nearly zero, Adam turns the rounding of single precision into a whole step."""

    def _sample(self, epoch: int, position: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = super()._sample(epoch, position, index)
        return images.double(), labels


class OneCase(RandomBatches):
    """The same sample at every step."""

    def _sample(self, epoch: int, position: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return super()._sample(0, 0, 0)


@SEGMENTING
@pytest.mark.slow
def test_it_overfits_one_case(name: str, tmp_path: Path) -> None:
    # The teachers here know nothing: who learns mostly from one could not get there.
    translation = {"width": 8, "blocks": 1}  # who reads translations needs some that show anything
    method = make(name, width=8, dropout=0.0, lr=2e-3, imitation_weight=0.0, hint_weight=0.0, translation=translation)
    count = 80 if method.dims == 3 else 300  # a slice has fewer voxels to learn from
    batches = OneCase(method.modalities, method.available, count=count, size=(32,) * method.dims, domains=method.domains)
    fit(method, batches, tmp_path, settings(epochs=2))
    batch = batches.batch(0, 0)
    with torch.inference_mode():
        found = method.eval().segment(batch.available).argmax(1)
    assert (found == batch.labels).float().mean() > 0.97
