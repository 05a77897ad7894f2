"""Checkpoints in two generations, each with its digest.

`checkpoints/index.json` names the generations, newest first, with their SHA-256; a file is written completely before the index
names it. On loading, a generation that does not match its digest is skipped with a warning, and the one before is used.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modistill.errors import FileError, ModelError, ModistillError, TrainingStopped
from modistill.files import read_json, sha256, write_file, write_json

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: made when the first checkpoint is written.
        generations: how many are kept.
    """

    def __init__(self, folder: Path, generations: int = 2) -> None:
        self.folder = folder
        self.generations = generations
        self._index = folder / "index.json"

    def save(self, parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write `state_dict()` of every part, and plain numbers beside them.

        Raises:
            TrainingStopped: a weight is not finite, or the file cannot be written; the earlier generations are intact.
        """
        _require_finite(parts, state["step"])
        content = {"parts": {name: part.state_dict() for name, part in parts.items()}, "state": dict(state)}
        path = self.folder / f"step-{state['step']:07d}.pt"
        digest: list[str] = []
        try:
            write_file(path, lambda place: torch.save(content, place), lambda place: digest.append(sha256(place)))
            entries = [entry for entry in self._entries() if entry["file"] != path.name]
            kept = [{"file": path.name, "sha256": digest[0], **_plain(state)}, *entries][: self.generations]
            write_json(self._index, {"newest_first": kept})
        except (ModistillError, RuntimeError) as error:  # torch answers a full disk with an inner error of its own
            reason = error.reason if isinstance(error, ModistillError) else "the disk took only a part of it"
            raise TrainingStopped(
                f"the checkpoint cannot be written: {reason.removeprefix('cannot be written: ')}",
                file=path,
                remedy="free disk space, then go on with --resume",
            ) from error
        for stale in self.folder.glob("step-*.pt"):
            if stale.name not in {entry["file"] for entry in kept}:
                stale.unlink()

    def load(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Load the newest sound generation into the parts; returns the numbers saved beside them.

        Raises:
            ModelError: there is none, or it belongs to other networks.
        """
        damaged = []
        for entry in self._entries():
            path = self.folder / entry["file"]
            if not path.is_file() or sha256(path) != entry["sha256"]:
                damaged.append(path.name)
                logger.warning("checkpoint %s is damaged; trying the one before", path)
                continue
            content = _content(path)
            if content["parts"].keys() != parts.keys():
                raise ModelError(
                    f"the checkpoint holds {sorted(content['parts'])}, this method has {sorted(parts)}",
                    file=path,
                    remedy="resume with the recipe of the run",
                )
            try:
                for name, part in parts.items():
                    part.load_state_dict(content["parts"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:300]
                raise ModelError(f"the checkpoint does not fit the method: {reason}", file=path) from error
            return dict(content["state"])
        found = f"all damaged ({', '.join(damaged)})" if damaged else "none found"
        raise ModelError(
            f"no sound checkpoint to resume from: {found}", file=self.folder, remedy="train again into a new folder"
        )

    def exists(self) -> bool:
        """Whether a checkpoint was ever completed here."""
        return self._index.exists()

    def _entries(self) -> list[dict[str, Any]]:
        if not self._index.exists():
            return []
        try:
            entries = read_json(self._index)["newest_first"]
            return [{**entry, "file": Path(entry["file"]).name, "sha256": str(entry["sha256"])} for entry in entries]
        except (FileError, KeyError, TypeError) as error:
            raise ModelError(
                "the index of the checkpoints is damaged", file=self._index, remedy="train again into a new folder"
            ) from error


def _content(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values. Whatever else a pickle asks for is refused, not run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if {"parts", "state"} <= content.keys():
            return dict(content)
        reason = "it lacks parts or state"
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:150]
    raise ModelError(f"not a checkpoint of modistill: {reason}", file=path, remedy="train again into a new folder")


def _require_finite(parts: Mapping[str, Any], step: int) -> None:
    """Keep weights that a finite but far too large step has ruined from replacing good ones."""
    for module in parts.values():
        for name, weight in module.named_parameters() if isinstance(module, torch.nn.Module) else ():
            if not torch.isfinite(weight).all():
                raise TrainingStopped(
                    f"{name} is not finite after step {step}: no checkpoint is written",
                    remedy="lower the learning rate, then go on with --resume",
                )


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, int | float)}
