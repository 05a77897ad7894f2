"""Recipes: strict keys, helpful refusals, constructors as schemas."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from modistill.errors import RecipeError
from modistill.methods import load_method
from modistill.recipe import MethodChoice, Recipe, build, load_recipe, recipe_names, save_recipe
from modistill.training import TrainingSettings


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text("data: {modalities: [t1, t2]}\nmethod: {name: supervised, width: 4}\n")
    return path


def test_a_recipe_makes_a_round_trip(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["sampling.patch_size=[32, 32, 16]", "training.epochs=7"])
    assert recipe.sampling.patch_size == (32, 32, 16)
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("samplin.batch_size=2", "unknown key samplin (did you mean sampling?)"),
        ("sampling.batchsize=2", "unknown key sampling.batchsize (did you mean batch_size?)"),
        ("sampling.batch_size=zero", "sampling.batch_size: Input should be a valid integer"),
        ("sampling.batch_size=0", "sampling.batch_size: Input should be greater than or equal to 1, found 0"),
        ("data.available=[t1ce]", "data: available holds t1ce, which modalities lack"),
        (
            "data.normalisation=minmax",
            "data.normalisation: known: zscore, hadnet, percentiles, landmarks, or two numbers, found 'minmax'",
        ),
        ("sampling", "--set sampling (write section.key=value)"),
        ("sampling.x=[", "the value is no YAML"),
    ],
)
def test_wrong_keys_are_answered_with_the_right_ones(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [override])
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_yaml_bomb_or_a_code_tag_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text("data: !!python/object/apply:os.system ['touch /tmp/never']\n")
    with pytest.raises(RecipeError, match=r"evil\.yaml: cannot be read"):
        load_recipe(evil)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean brats/had_net"):
        load_recipe("brats/hadnet")


def test_constructor_arguments_are_checked_against_their_annotations() -> None:
    method = load_method("supervised")
    with pytest.raises(RecipeError, match=r"unknown key method.widht \(did you mean width\?\)"):
        build(method, {"widht": 4}, "method")
    with pytest.raises(RecipeError, match=r"method.width: Input should be a valid integer.*found 'wide'"):
        build(method, {"width": "wide"}, "method")
    with pytest.raises(RecipeError, match="class_weights needs 4 positive numbers"):
        build(method, {"width": 2, "class_weights": [1, 2]}, "method")
    with pytest.raises(RecipeError, match=r"there is no method 'had_ned' \(did you mean had_net\?\)"):
        load_method("had_ned")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_a_method_and_arguments_that_exist(name: str) -> None:
    recipe = load_recipe(name)
    parameters = inspect.signature(load_method(recipe.method.name)).parameters
    assert set(recipe.method.arguments) <= set(parameters)
    TrainingSettings(**recipe.training)
    assert recipe.about


@pytest.mark.parametrize("stage", ["brats", "demo", "translation"])
def test_all_arms_share_one_prepared_cohort(stage: str) -> None:
    assert len({load_recipe(name).data for name in recipe_names() if name.startswith(f"{stage}/")}) == 1


@pytest.mark.parametrize("stage", ["brats", "demo"])
def test_control_differs_from_had_net_in_nothing_but_distillation(stage: str) -> None:
    control, had_net = (load_recipe(f"{stage}/{name}") for name in ("control", "had_net"))
    assert (control.data, control.sampling, control.training) == (had_net.data, had_net.sampling, had_net.training)
    for name in ("width", "dropout", "class_weights", "lr", "betas"):
        assert control.method.arguments[name] == had_net.method.arguments[name]
    assert control.start_from["network"] == had_net.start_from["student"]
    assert control.method.arguments["class_weight_decay"] == 1.0
    assert control.method.arguments["weight_decay"] == 0.0


def test_the_papers_values() -> None:
    """Section 13 of the literature digest: what made HAD-Net's published numbers."""
    teacher, student = load_recipe("brats/teacher"), load_recipe("brats/had_net")
    assert (teacher.training["epochs"], student.training["epochs"]) == (400, 800)
    assert teacher.method.arguments["lr"] == student.method.arguments["lr"] == 2e-4
    assert student.method.arguments["betas"] == [0.5, 0.999]
    assert student.method.arguments["adversarial_weight"] == 0.2
    assert student.method.arguments["critic_rests_above"] == 0.8
    assert student.data.size == (160, 192, 160)
    assert (teacher.sampling.augmentation, student.sampling.augmentation) == ("hadnet", "none")


def test_method_choice_keeps_what_it_does_not_know() -> None:
    choice = MethodChoice.model_validate(yaml.safe_load("{name: x, depth: 3}"))
    assert choice.arguments == {"depth": 3}
    assert Recipe.model_validate({"data": {"modalities": ["t1"]}, "method": choice}).method.name == "x"
