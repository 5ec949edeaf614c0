"""`-q` and `--json`: what every command tells, by one place; and the legend of its tables."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import palimpsest
from palimpsest.cli import console, main, telling
from palimpsest.core.legend import arrow, headed, legend
from palimpsest.judge import answers, cosine, fid, frechet, membership, watermark, zero_shot
from palimpsest.judge import rates as judged
from palimpsest.judge.clip_score import ClipScore
from palimpsest.judge.lpips import LPIPS
from palimpsest.judge.ms_ssim import MSSSIM
from palimpsest.judge.ssim import SSIM
from palimpsest.judge.style import Style
from palimpsest.methods import Number
from palimpsest.report.sections import themes
from palimpsest.runs.folder import Run

Said = pytest.CaptureFixture[str]
VERBS = [
    *(Path(palimpsest.__file__).parent / "cli").glob("*/*.py"),
    *(Path(palimpsest.__file__).parent / "cli" / f"{n}.py" for n in ("plan", "judged", "sets")),
]
ASKS = """prompt,seed,object
a picture of a parachute,1,parachute
a parachute,2,parachute
a church,3,church
"""


def tell(capsys: Said, *words: str | Path, code: int = 0) -> tuple[str, str]:
    """What a command says on stdout and on stderr."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code, capsys.readouterr().err
    said = capsys.readouterr()
    return said.out, said.err


def page(capsys: Said, *words: str | Path) -> dict[str, Any]:
    """The document of a command, in which NaN is no JSON."""
    return json.loads(tell(capsys, *words, "--json")[0], parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def erasing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that erases, once it was run quietly, with its flag in the middle."""
    ground = tmp_path_factory.mktemp("telling")
    (ground / "asks.csv").write_text(ASKS)
    words = ["erase", "uce", "--concept", "parachute", "--prompts", str(ground / "asks.csv")]
    words += ["--draw.steps", "2", "--judge", "world", "--runs", str(ground / "runs")]
    assert main([*words[:4], "-q", *words[4:]]) == 0
    return words


@pytest.fixture
def run(erasing: list[str]) -> Run:
    (folder,) = Path(erasing[-1]).glob("uce-*")
    return Run.open(folder)


def test_quiet_and_json_are_of_the_same_run_and_no_part_of_its_command(
    erasing: list[str], run: Run, capsys: Said
):
    assert tell(capsys, "-q", *erasing) == (f"{run.folder}\n", "")
    told = page(capsys, *erasing)
    assert told["made"] == [str(run.folder)]
    assert told["exit"] == 0
    assert told["command"] == run.record().command
    assert not {"-q", "--json"} & {*run.record().command.split()}
    before, after = told["runs"]
    assert (before["name"], before["folder"]) == ("unedited", None)
    assert (after["name"], after["folder"]) == ("erased", str(run.folder))
    kept = {n.name: n for n in run.record().each}
    for number in after["numbers"]:
        own = kept.pop(number["name"])
        for field in ("name", "value", "low", "high", "n", "unit", "spec"):
            value = getattr(own, field)
            assert number[field] == (None if value != value else value)
    assert not kept, "every number of the record stands there"
    assert len([*Path(erasing[-1]).glob("uce-*")]) == 1


def test_tables_have_their_values_and_no_words_for_them(erasing: list[str], run: Run, capsys: Said):
    groups = page(capsys, "patch", "show", run.folder)["tables"][0]
    whole = dict(zip(groups["columns"], groups["rows"][-1], strict=True))
    assert whole["layers"] == "all"
    assert whole["norm"] == pytest.approx(run.record().edit_norm)
    assert whole["share of energy"] == pytest.approx(1)
    same = page(capsys, "patch", "diff", run.folder, run.folder)
    assert same["tables"][0]["rows"][-1][3:] == [pytest.approx(1), pytest.approx(0, abs=1e-3)]
    assert same["text"] == ["the two patches hold the very same tensors"]
    planned = page(capsys, "judge", run.folder, "--budget", "5")["tables"][0]
    assert planned["rows"][0][1]["value"] in (0, 0.5, 1)
    assert planned["meanings"]["UA"].startswith("unlearning accuracy")
    assert tell(capsys, "patch", "show", run.folder, "-q") == ("", "")


def test_what_is_refused_is_one_sentence_and_no_document(capsys: Said):
    out, err = tell(capsys, "--json", "erase", "uce", "--concept", "parachute", "--n", "0", code=2)
    assert out == ""
    assert len(err.splitlines()) == 1


def test_lists_and_citations_are_told_either_way(capsys: Said):
    lists = page(capsys, "list")["tables"]
    assert {"uce", "esd"} <= {name for name, _ in lists[0]["rows"]}
    (entry,) = page(capsys, "cite", "uce")["text"]
    assert tell(capsys, "cite", "uce", "-q")[0] == entry + "\n"


@given(st.lists(st.sampled_from(["-q", "--quiet", "--json", "--", "erase", "a b", "-x"])))
def test_the_flags_may_stand_anywhere_before_two_dashes(words: list[str]):
    try:
        rest = telling.begin(words)
        ends = words.index("--") if "--" in words else len(words)
        assert rest[-len(words[ends:]) or len(rest) :] == words[ends:]
        before = words[:ends]
        assert [w for w in before if w in ("erase", "a b", "-x")] == rest[
            : len(rest) - len(words[ends:])
        ]
        assert telling.now.quiet == bool({"-q", "--quiet"} & {*before})
        assert telling.now.json == ("--json" in before)
    finally:
        telling.begin([])


def test_nothing_is_told_past_the_one_place():
    wrong = [
        path.name
        for path in VERBS
        if re.search(r"\bprint\(|sys\.stdout|console\.console\(", path.read_text(encoding="utf-8"))
    ]
    assert len(VERBS) > 20
    assert not wrong, wrong


def test_a_number_without_a_value_is_null_and_a_dash():
    row = Number("UA", math.nan, n=0, unit="%")
    assert telling.plain(row)["value"] is None
    assert str(console.cell(row)) == "–"


# --- the legend ---

EVERY: dict[str, str] = {
    **judged.MEANINGS,
    **cosine.MEANINGS,
    **ClipScore.meanings,
    **zero_shot.MEANINGS,
    **answers.MEANINGS,
    **watermark.MEANINGS,
    **fid.MEANINGS,
    **{f"FID{which}": text for which, text in frechet.MEANINGS.items()},
    **{kind.title: kind.meaning for kind in (SSIM, MSSSIM, LPIPS, Style)},
    **themes.JOINT,
}


def test_every_measure_says_which_way_is_good():
    assert len(EVERY) > 20
    for name, meaning in EVERY.items():
        assert arrow(name, meaning) in ("↑", "↓"), name
    neither = {**membership.MEANINGS, **judged.THEME_MEANINGS, **cosine.THEME_MEANINGS}
    assert all(arrow(*each) == "" for each in neither.items())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("UA", "UA ↑"),
        ("IRA", "IRA ↑"),
        ("CLIP cosine, others", "CLIP cosine, others ↑"),
        ("CLIP cosine, concept", "CLIP cosine, concept ↓"),  # its pictures no longer fit
        ("LPIPS (AlexNet), others", "LPIPS (AlexNet), others ↓"),
        ("LPIPS (AlexNet), concept", "LPIPS (AlexNet), concept ↑"),
        ("FID to gold, concept", "FID to gold, concept ↓"),  # as near to gold as can be
        ("forget accuracy @1", "forget accuracy @1 ↓"),
        ("name said", "name said ↓"),
    ],
)
def test_the_way_is_the_literatures(name: str, shown: str):
    meanings = {**EVERY, LPIPS.title: LPIPS.meaning, "LPIPS (AlexNet)": LPIPS.meaning}
    assert headed(name, meanings[name.partition(",")[0]]) == shown


def test_a_table_ends_with_a_legend_of_what_is_in_it(capsys: Said):
    meanings = {"UA": judged.MEANINGS["UA"], "UA, by another": judged.MEANINGS["UA"]}
    console.table("Numbers", ["", "n"], [["UA", 2], ["UA, by another", 2], ["cost", 3]], meanings)
    said = capsys.readouterr().out
    assert "UA ↑" in said
    assert "UA, by another ↑" in said
    assert said.count("unlearning accuracy") == 1
    assert "↑ high and ↓ low are good" in said
    assert "in-domain" not in said
    assert legend(meanings.items()) == {
        "UA": "unlearning accuracy: asked for the erased concept, the share of pictures in which "
        "the judge no longer sees it"
    }
    console.table("Numbers", ["", "n"], [["cost", 3]])
    assert "↑" not in capsys.readouterr().out
