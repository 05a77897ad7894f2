"""Deployable weights: one safetensors file that carries its own card and digest. Opening it never runs code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modistill.errors import FileError, ModelError
from modistill.files import write_file, write_json

__all__ = ["FORMAT", "load_weights", "save_weights"]

FORMAT = 2  # 1: the digest did not cover the card


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write tensors and their card into one file, and the card once more beside it for people (`.json`).

    Args:
        path: `model.safetensors`.
        tensors: state of the deployed network.
        card: plain values: how to build the method, what it reads, where it comes from.

    Raises:
        ModelError: a weight is not finite.
        FileError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    broken = [name for name, tensor in plain.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(f"weights that are not finite are not saved: {', '.join(broken[:3])}", file=path)
    card = {"format": FORMAT, **card}
    card["digest"] = _digest(plain, card)
    metadata = {"modistill": json.dumps(card, default=str)}

    def write(place: Path) -> None:
        try:
            save_file(plain, place, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    write_file(path, write, lambda place: _check(place, card["digest"]))
    write_json(path.with_suffix(".json"), card)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a file written by `save_weights`.

    Raises:
        ModelError: there is no such file, it is damaged (cut, a flipped bit), foreign or from a later version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError("no trained model here", file=path, remedy="give the run folder of a finished training")
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"damaged: {' '.join(str(error).split())[:150]}", file=path, remedy="copy the file again") from error
    if "modistill" not in metadata:
        raise ModelError("not a model of modistill: it has no card", file=path)
    card = _card(metadata["modistill"], path)
    if card["format"] > FORMAT:
        raise ModelError(
            f"written in format {card['format']}, this version reads {FORMAT}", file=path, remedy="update modistill"
        )
    if card.get("digest") != _digest(tensors, card):
        raise ModelError("damaged: its weights and card do not match their digest", file=path, remedy="copy the file again")
    return tensors, card


def _card(text: str, path: Path) -> dict[str, Any]:
    try:
        card = json.loads(text)
        if isinstance(card, dict) and isinstance(card.get("format"), int):
            return card
        reason = "it states no format"
    except (ValueError, RecursionError) as error:
        reason = str(error)[:150]
    raise ModelError(f"damaged card: {reason}", file=path, remedy="copy the file again")


def _digest(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """SHA-256 over the card, and over names, types, shapes and bytes of all tensors.

    The card is as much the model as its weights are: with two modalities exchanged it would answer nonsense in silence.
    """
    digest = hashlib.sha256()
    if card["format"] > 1:
        content = {name: value for name, value in card.items() if name != "digest"}
        digest.update(json.dumps(content, default=str, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check(path: Path, digest: str) -> None:
    if load_weights(path)[1]["digest"] != digest:
        raise FileError("the weights changed on the way to the disk", file=path)
