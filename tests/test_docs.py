"""What the docs promise: the example runs, links lead somewhere, commands exist."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import cache
from pathlib import Path

import pages
import pytest
import torch
from pages import ROOT, fences
from tyro import _docstrings

from palimpsest.cli import main, telling
from palimpsest.cli.bench.campaign import read, variant_title
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import ERASERS
from palimpsest.methods import Eraser
from palimpsest.world import suite

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "leaderboard" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXAMPLE = pages.own("eraser")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- the example of "write your own eraser" ---


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page's one python fence as the module that the page says it is."""
    return pages.as_module(EXAMPLE, "anchor_distillation", tmp_path, monkeypatch)


def small(kind):
    settings = {"steps": 2, "batch": 2, "drawn.pictures": 4, "drawn.steps": 4}
    return kind(**kind.presets["world"]).changed(settings)


def test_the_example_erases_and_leaves_the_model_bit_identical(example, model, weights, context):
    eraser = small(example.AnchorDistillation)
    patch = eraser(model, suite.concept("parachute", "balloon"), context=context).patch
    with model.patched(patch):
        changed = [n for n in patch.edits if not torch.equal(weights[n], model._parameters[n])]
    assert changed
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in patch.edits)
    assert patch.edits.keys() == eraser.moves(model).keys()
    assert patch.about["method"] == "anchor_distillation"
    assert patch.about["arguments"]["drawn"]["pictures"] == 4
    assert all(torch.equal(weights[name], p) for name, p in model._parameters.items())


def test_the_example_refuses_a_concept_without_an_anchor(example, model, context):
    with pytest.raises(PalimpsestError, match="no anchor"):
        small(example.AnchorDistillation)(model, Concept("parachute"), context=context)


def test_the_example_keeps_the_form_of_a_method(example):
    kind = example.AnchorDistillation
    assert is_dataclass(kind)
    assert isinstance(kind(), Eraser)
    with pytest.raises(FrozenInstanceError):
        kind().steps = 1
    assert kind() == kind(**kind.presets["published"])
    for field in fields(kind):
        assert _docstrings.get_field_docstring(kind, field.name, ()), field.name


def test_the_example_is_found_by_its_entry_point(example, monkeypatch: pytest.MonkeyPatch):
    name = pages.register(EXAMPLE, ERASERS.group, monkeypatch)
    assert name in ERASERS
    assert ERASERS.load(name) is example.AnchorDistillation
    assert ERASERS.summary(name)


# --- every page ---


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_relative_link_leads_somewhere(page: Path):
    targets = [link.split("#")[0] for link in LINK.findall(page.read_text())]
    relative = [t for t in targets if t and not re.match(r"[a-z]+:", t)]
    assert [t for t in relative if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_no_figure_is_left_blank(page: Path):
    assert re.findall(r"\{\{FIGURE[^}]*\}\}", page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_in_the_docs_parses_and_imports_what_exists(page: Path):
    for source in [*fences(page, "python"), *fences(page, "py")]:
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("palimp"):
                continue
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


# --- every command ---


def commands() -> list[tuple[str, ...]]:
    """Every distinct `palimpsest …` line of the shell fences, as words."""
    found = []
    for page in PAGES:
        for body in fences(page, "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["palimpsest"]:
                    found.append(tuple(telling.begin(words[1:])))
    return list(dict.fromkeys(found))


def verb_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words before the flags of a verb: itself, and a method's or a subcommand's name."""
    methods = ("erase", "recover", "clip", "llava")
    return words[: 2 if words[0] in (*methods, "data", "world", "patch") else 1]


@cache
def flags_of(verb: tuple[str, ...]) -> frozenset[str]:
    """The flags that the verb's own help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            code = main([*verb, "--help"])
        except SystemExit as end:
            code = end.code or 0
    assert code == 0, f"palimpsest {' '.join(verb)} --help: exit code {code}"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    return frozenset(re.findall(r"--[a-z][a-z0-9.-]*", plain))


def test_the_docs_show_commands():
    assert {("erase", "esd"), ("erase", "uce"), ("recover", "memora"), ("report",)} <= {
        verb_of(words) for words in commands()
    }


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_in_the_docs_exists_with_its_flags(words: tuple[str, ...]):
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    assert flags <= flags_of(verb_of(words)) | {"--help"}


# --- figures that several pages tell ---

MEANS = re.compile(
    r"UA is (\S+) %, IRA (\S+) % and CRA (\S+) %; over five that nobody tuned on, "
    r"(\S+) %, (\S+) % and (\S+) %"
)


@pytest.mark.parametrize(
    ("method", "title"),
    [(v.method, variant_title(v)) for v in read(ROOT / "recipes/erasers.yaml").erasers],
)
def test_a_method_page_tells_what_the_table_does(method: str, title: str):
    table = (ROOT / "docs/results/erasers.md").read_text().partition("## Each concept")[0]
    row = next(line for line in table.splitlines() if line.startswith(f"| {title} |"))
    means = [cell.split()[0] for cell in row.split("|")[3:9]]
    page = " ".join((ROOT / f"docs/methods/{method}.md").read_text().split())
    told = [(m[1], m[4], m[2], m[5], m[3], m[6]) for m in MEANS.finditer(page)]
    assert tuple(means) in told
