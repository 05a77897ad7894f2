"""The pages say what is true: commands exist, links lead somewhere, the example method works, tables match the code."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import modistill.methods
from modistill.cli.app import app
from modistill.data.naming import conventions, known_modality
from modistill.methods import load_method, method_names
from modistill.recipe import recipe_names

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SCRIPTS = sorted(ROOT.glob("examples/*.sh"))
COMMANDS: Any = typer.main.get_command(app).commands
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
AT_COMMAND_PLACE = re.compile(r"(?:^|[;&|]|\bdo|\bthen)\s*(?:\$\s+)?modistill\s+(.*)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def command_lines(path: Path) -> Iterator[str]:
    """What follows `modistill` on the lines of scripts and fenced blocks, continuation lines joined."""
    text = path.read_text()
    blocks = [text] if path.suffix == ".sh" else [block for _, block in FENCE.findall(text)]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if found := AT_COMMAND_PLACE.search(line):
                yield found[1]


def arguments(line: str) -> list[str]:
    """The words of one command: without comment, what follows it, and arrays, which hold whatever the script put there."""
    words = shlex.split(line, comments=True)
    end = next((place for place, word in enumerate(words) if re.fullmatch(r"[;&|]+|\d?>+.*", word)), len(words))
    words = [word.rstrip(";") for word in words[:end]]
    return [word for word in words if not re.fullmatch(r"\$\{\w+\[@\]\}", word) and word not in ("--debug", "--help")]


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts) if name[0] == "-"}


ALL_OPTIONS = set().union(*map(options, COMMANDS.values())) | {"--help", "--debug"}
LINES = [(named(path), line) for path in (*PAGES, *SCRIPTS) for line in command_lines(path)]


@pytest.mark.parametrize(("place", "line"), LINES, ids=[f"{place}:{index}" for index, (place, _) in enumerate(LINES)])
def test_every_command_shown_can_be_typed(place: str, line: str) -> None:
    """The command's own parser takes the line: names, options, their number and types, and nothing required is left out."""
    name, *words = arguments(line) or ["--help"]
    if set(line.split()) <= set(COMMANDS) or name == "--help":  # a list of the commands, or help
        return
    assert name in COMMANDS, f"{place}: there is no command {name!r}"
    if "--help" not in line.split():
        COMMANDS[name].make_context(name, words)


def test_the_check_of_commands_would_notice() -> None:
    lines = 'x && modistill predict -i "$in" \\\n  --modell RUN -o OUT  # why\nfor a in b; do modistill trian x; done\n'
    found = [found[1] for line in lines.replace("\\\n", " ").splitlines() if (found := AT_COMMAND_PLACE.search(line))]
    assert [arguments(line) for line in found] == [
        ["predict", "-i", "$in", "--modell", "RUN", "-o", "OUT"],
        ["trian", "x", "done"],
    ]
    with pytest.raises(Exception, match="--modell"):
        COMMANDS["predict"].make_context("predict", arguments(found[0])[1:])
    with pytest.raises(Exception, match=r"(?i)missing"):
        COMMANDS["predict"].make_context("predict", ["-i", "x", "-o", "y"])
    assert len(LINES) > 30


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_commands_and_options_in_the_text_exist(path: Path) -> None:
    text = FENCE.sub("", path.read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith("modistill "):
            name, *words = arguments(code.removeprefix("modistill ")) or ["--help"]
            assert name in {*COMMANDS, "COMMAND", "--help"}, f"{named(path)}: {code}"
            known = options(COMMANDS[name]) if name in COMMANDS else ALL_OPTIONS
            foreign = [word for word in words if re.match(r"--?[a-z]", word) and word not in known]
            assert not foreign, f"{named(path)}: {code}"
        elif code.startswith("--"):
            assert code.split()[0].split("=")[0] in ALL_OPTIONS, f"{named(path)}: {code}"


def test_the_page_of_commands_is_complete() -> None:
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", page("cli.md"), re.MULTILINE | re.DOTALL))
    assert set(COMMANDS) <= set(sections)
    for name, command in COMMANDS.items():
        for parameter in command.params:
            long = [option for option in parameter.opts if option.startswith("--") and option != "--help"]
            assert not long or any(re.search(rf"{option}\b", sections[name]) for option in long), f"{name}: {long}"


def anchors(path: Path) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), f"{named(path)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{named(path)} links to {link}"


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=named)
def test_no_page_names_a_path_of_some_machine(path: Path) -> None:
    found = re.search(r"(?:^|[\s\"'`(=:])/(?:work|tmp|home|root|mnt|var|Users)\b.*", path.read_text(), re.MULTILINE)
    assert found is None, f"{named(path)}: {found and found[0]}"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The method of docs/methods.md, installed as a file of the zoo; its name there."""
    (code,) = [block for language, block in FENCE.findall(page("methods.md")) if language == "python"]
    name = re.search(r"src/modistill/methods/(soft\w+)\.py", page("methods.md"))[1]
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(modistill.methods, "__path__", [*modistill.methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"modistill.methods.{name}", raising=False)
    yield name
    sys.modules.pop(f"modistill.methods.{name}", None)


def test_the_example_method_passes_the_contract(example: str, tmp_path: Path) -> None:
    import test_contract as contract

    for dims in (2, 3):
        contract.test_every_player_learns_from_named_finite_terms_and_changes_nobody_else(example, dims)
    contract.test_the_docstring_cites_the_paper_and_lists_what_differs(example)
    contract.test_segment_gives_the_same_for_a_batch_and_its_parts(example, (17, 45))
    contract.test_leak_what_stands_in_a_missing_channel_changes_no_bit(example, float("nan"))
    contract.test_interrupted_and_resumed_equals_uninterrupted(example, tmp_path)


def test_the_example_learns_from_its_teacher(example: str) -> None:
    """Equal logits, no imitation term; and the gradient reaches the student alone."""
    import torch

    from samples import RandomBatches

    method = load_method(example)(("t1", "t2"), ("t1", "t2"), width=2, dims=2, dropout=0.0)
    batch = RandomBatches(method.modalities, method.available, size=(32, 32)).batch(0, 0)
    ((_, terms),) = method.losses(batch)
    assert terms["imitation"].item() > 1e-4
    method.teacher.load_state_dict(method.student.state_dict())
    ((player, terms),) = method.losses(batch)
    assert player == "student"
    torch.testing.assert_close(terms["imitation"], torch.zeros(()), atol=1e-6, rtol=0)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_the_example_recipe_builds_the_example(example: str) -> None:
    from modistill.files import parse_yaml
    from modistill.recipe import Recipe, check
    from modistill.runs import build_method
    from modistill.training import TrainingSettings

    (text,) = [block for language, block in FENCE.findall(page("methods.md")) if language == "yaml"]
    recipe = check(Recipe, parse_yaml(text), "docs/methods.md")
    check(TrainingSettings, recipe.training, "training")
    assert set(recipe.start_from) == set(build_method(recipe).reads)


def test_the_table_of_methods_is_that_of_the_code() -> None:
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page("methods.md").splitlines() if line.startswith("| `")]
    rows = [row for row in rows if len(row) == 5]
    assert sorted(row[0].strip("`") for row in rows) == list(method_names())
    for name, _, terms, recipes, taken in rows:
        method = load_method(name.strip("`"))
        assert re.findall(r"`(\w+)`", taken) == list(inspect.signature(method).parameters)
        assert set(re.findall(r"`([\w/]+)`", recipes)) <= set(recipe_names())
        described = inspect.getdoc(inspect.getmodule(method))
        assert set(re.findall(r"`(\w+/\w+)`", terms)) == set(re.findall(r"^ +(\w+/\w+)  ", described, re.MULTILINE))


def test_names_and_label_numbers_are_those_of_the_code() -> None:
    text = page("data.md")
    aliases = re.search(r"also written \|\n\|---\|---\|\n(.*?)\n\n", text, re.DOTALL)[1]
    for line in aliases.splitlines():
        name, *others = re.findall(r"`(\w+)`", line)
        assert [known_modality(other) for other in (name, *others)] == [name] * (1 + len(others))
    header, numbers = re.search(r"\| name \|( NCR .*?)\n\|[-|]+\n(.*?)\n\n", text, re.DOTALL).groups()
    classes = [cell.strip() for cell in header.strip("| ").split("|")]
    shown = {}
    for line in numbers.splitlines():
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        shown[name.strip("`")] = {label: int(cell) for label, cell in zip(classes, cells, strict=True) if cell}
    assert shown == {name: dict(convention.values) for name, convention in conventions.items()}


def test_the_architecture_page_names_every_file_and_layer() -> None:
    import test_architecture as architecture

    text = page("architecture.md")
    source = ROOT / "src" / "modistill"
    files = {str(path.relative_to(source)) for path in source.rglob("*.py") if path.name != "__init__.py"}
    shown = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    assert files <= shown, f"not on the page: {sorted(files - shown)}"
    places = [source, source.parent, ROOT]
    assert [name for name in shown if not any((place / name).exists() for place in places)] == []
    layers = {}
    for number, names in re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE):
        listed = re.findall(r"`(\w+)`", names.split(" (")[0] if number != "5" else names)
        layers.update({name: int(number) for name in listed})
    assert layers == architecture.LAYERS


def test_signatures_on_the_architecture_page_exist() -> None:
    """Every function and class of the page is defined somewhere in the package, with the arguments shown."""
    (block,) = [block for language, block in FENCE.findall(page("architecture.md")) if language == "python"]
    defined: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.args, *node.args.kwonlyargs]
                defined.setdefault(node.name, set()).update(argument.arg for argument in every)
            elif isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, set())
    for name, inside in re.findall(r"(\w+)\(([^()]*)\)", re.sub(r"\((?:[A-Z], )+[A-Z]\)", "", block)):
        assert name in defined, f"{name} is on the page and not in the code"
        shown = {word.split("=")[0].strip() for word in inside.split(",")} - {"*", "...", ""}
        assert not defined[name] or shown <= defined[name], f"{name}: {sorted(shown - defined[name])}"
