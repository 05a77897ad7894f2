"""Starting from the weights of other runs, and from none that have seen who is held back here."""

from __future__ import annotations

import os
from pathlib import Path

from modistill.data.splits import Split, patient_of
from modistill.data.store import PreparedCohort
from modistill.errors import ModelError, RecipeError
from modistill.methods.base import Method
from modistill.recipe import Recipe
from modistill.weights import load_weights

__all__ = ["start_from"]


def start_from(method: Method, recipe: Recipe, output: Path, cohort: PreparedCohort) -> None:
    """Give networks the deployed weights of other runs, if they read the same modalities and find the same classes, in order.

    Args:
        method: receives the weights.
        recipe: says which network starts from which run.
        output: the run folder; the other runs are named relative to it.
        cohort: of the new run; what it holds back for validation and test, the other runs must not have been trained on.

    Raises:
        RecipeError: no such network, or none for one that never learns here.
        ModelError: weights that are absent, damaged, of another network, other modalities or other classes, or that have seen
            cases held back here.
    """
    if idle := [network for network in method.learnt_before if network not in recipe.start_from]:
        raise RecipeError(
            f"start_from.{idle[0]} is not given: a network that has learnt nothing would teach",
            remedy=f"start_from: {{{idle[0]}: its run folder}}",
        )
    classes = ["background", *cohort.plan.classes]
    for network, folder in recipe.start_from.items():
        if network not in method.reads:
            raise RecipeError(f"start_from.{network}: no such network", remedy=f"known: {', '.join(method.reads)}")
        path = Path(os.path.normpath(output / folder))  # the run folder itself need not exist yet
        tensors, card = load_weights(path / "model.safetensors" if path.suffix != ".safetensors" else path)
        if tuple(card["reads"]) != method.reads[network]:
            raise ModelError(
                f"reads {', '.join(card['reads'])}, the {network} of this method reads {', '.join(method.reads[network])}",
                file=path,
            )
        if card.get("classes") != classes:
            raise ModelError(
                f"finds {', '.join(card.get('classes', ()))}, the prepared cases hold {', '.join(classes)}",
                file=path,
                remedy="prepare both cohorts with one label convention",
            )
        _require_unseen(path, cohort)
        try:
            method.get_submodule(network).load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"does not fit the {network}: {reason}", file=path, remedy="give both methods equal widths, depths and modes"
            ) from error


def _require_unseen(run: Path, cohort: PreparedCohort) -> None:
    """Refuse a run that was trained on patients held back here: its weights would carry them into this training."""
    record = (run if run.is_dir() else run.parent) / "split.json"
    if not record.is_file():  # weights that came alone say nothing about their patients
        return
    trained = {patient_of(case) for case in Split.load(record)["train"]}
    held_back = (*cohort.ids("validation"), *cohort.ids("test"))
    if seen := [case for case in held_back if patient_of(case) in trained]:
        raise ModelError(
            f"was trained on {len(seen)} of the {len(held_back)} cases held back here, such as {seen[0]}",
            file=run,
            remedy=f"prepare with its split: --split {record}",
        )
