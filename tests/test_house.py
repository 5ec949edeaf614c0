"""The rules of the house that a syntax tree can tell."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from statistics import median

import pytest

import palimpsest
from palimpsest.erase import ERASERS
from palimpsest.recover import RECOVERIES

ROOT = Path(palimpsest.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
METHODS = [*sorted((ROOT / "erase").rglob("*.py")), *sorted((ROOT / "recover").rglob("*.py"))]
FAMILY_ONLY = {"hidden", "alphas", "tokenizer", "unet"}
"""What is a family's own: methods ask the protocol."""
MOST_LINES = 28_100
"""Lines of code, without blanks, comments and docstrings. 14,944 before there were locks, typed
loaders and checks of what comes from elsewhere; 246 are for tables of prompts, the Hub and devices,
670 for the dialects that others publish edits in, by a map of names of our own, 480 for audits,
530 for replays on other models, budgets and what lies on the Hub, 2,900 for judges and what they
count: seven judges of real models and the training of one, nine measures, intervals that know
prompts and seeds, paired tests, eight protocols, several judges of a run; 270 are for what rounding
takes of an edit and for hashes that are kept, 550 for little memory and its count from true shapes,
520 for imports for type checkers alone, help by groups, and answers to what is said again, 530 for
`-q` and `--json`, quiet libraries, progress in notebooks and its pace, values told in a line, and
legends, 40 for lists that fit the terminal, threads that import, and folders behind links, 250 for
shifts that are trained as factors, and for Adam of 8 bits, 500 for charts as SVG of our own in the
place of plotly's 4.5 MB, 1,100 for results as rows, over seeds, as tables and as entries of a
leaderboard, and for loggers, 900 for campaigns, 320 for engines on Ray and Slurm, 390 for one run
in several processes, 1,000 for a site of runs. A change that needs more says so here."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def code_lines(path: Path) -> dict[int, str]:
    """Number → line, without blanks, comments and docstrings."""
    lines = dict(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for node in ast.walk(tree(path)):
        for child in node.body if isinstance(node, ast.Module | ast.ClassDef | Function) else ():
            if is_docstring(child):
                for number in range(child.lineno, (child.end_lineno or child.lineno) + 1):
                    lines.pop(number, None)
    return {n: line for n, line in lines.items() if line.strip() and line.strip()[0] != "#"}


@pytest.fixture(scope="module")
def lines() -> dict[Path, dict[int, str]]:
    return {path: code_lines(path) for path in FILES}


def test_only_families_know_what_is_a_familys_own():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} reads .{node.attr}"
        for path in FILES
        if not {"models", "make"} & set(path.relative_to(ROOT).parts)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in FAMILY_ONLY
    ]
    assert not wrong, wrong


def settings(path: Path) -> Iterator[tuple[str, str]]:
    """(field, its docstring) of every dataclass that is declared in a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and "dataclass" in ast.dump(
            ast.List(node.decorator_list)
        ):
            for field, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and is_docstring(after):
                    assert isinstance(field.target, ast.Name)
                    yield field.target.id, ast.literal_eval(after.value)  # type: ignore[attr-defined]


def test_no_setting_is_declared_in_more_than_two_methods():
    where = defaultdict(list)
    for path in METHODS:
        for setting in settings(path):
            where[setting].append(path.name)
    assert len(where) > 60
    wrong = {field: names for (field, _), names in where.items() if len(names) > 2}
    assert not wrong, wrong


def test_nothing_stands_twice_in_the_methods():
    """No run of six lines of code, imports aside."""
    where = defaultdict(list)
    for path in METHODS:
        own = [
            (n, line.strip())
            for n, line in code_lines(path).items()
            if not line.startswith(("from ", "import ")) and len(line.strip()) > 1
        ]
        for i in range(len(own) - 5):
            run = tuple(line for _, line in own[i : i + 6])
            where[run].append(f"{path.relative_to(ROOT)}:{own[i][0]}")
    wrong = [places for places in where.values() if len(places) > 1]
    assert not wrong, wrong


def test_files_and_functions_are_short(lines):
    long = {str(path.relative_to(ROOT)): len(own) for path, own in lines.items() if len(own) > 300}
    assert not long, long
    sizes = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, Function):
                span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                sizes.append(sum(number in lines[path] for number in span))
    assert median(sizes) <= 8


def test_the_house_has_not_grown(lines):
    assert sum(map(len, lines.values())) <= MOST_LINES


MARK = re.compile(r"#.*(eq\. \d|alg\. \d|§|\bstep: |\bsteps? \d|the paper's|their code's)")
"""How a line of code says which equation or step of the paper it is."""


def marked(source: str) -> bool:
    return any(map(MARK.search, source.splitlines()))


def toolbox_parts(source: str) -> Iterator[str]:
    """The functions and classes of the toolbox that a method's file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "palimpsest.toolbox"
        ):
            module = import_module(node.module or "")
            for alias in node.names:
                part = getattr(module, alias.name)
                if inspect.isclass(part) or inspect.isfunction(part):
                    yield inspect.getsource(part)


@pytest.mark.parametrize(
    ("registry", "name"), [(r, name) for r in (ERASERS, RECOVERIES) for name in r.own]
)
def test_a_method_warns_of_its_traps_and_says_where_its_equations_are_from(registry, name):
    kind = registry.load(name)
    assert re.search(r"^ *Traps: ", kind.__doc__, re.MULTILINE)
    own = Path(inspect.getfile(kind)).read_text(encoding="utf-8")
    assert any(map(marked, [own, *toolbox_parts(own)]))
