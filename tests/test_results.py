"""Results as data: rows say what records say, summaries what rows do, files what both do."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import palimpsest
from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import ERASERS, ESD
from palimpsest.methods import Number
from palimpsest.metrics import rates
from palimpsest.models.sampling import Sampling
from palimpsest.recover import RECOVERIES, Restoration
from palimpsest.report.results import COLUMNS, ONE, SUMMARY_COLUMNS, Row, rows, summaries
from palimpsest.report.results.files import RESULTS, escaped, write_results
from palimpsest.report.results.rows import settings
from palimpsest.report.results.summaries import ONE_ERASURE
from palimpsest.report.results.tables import tables
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel
from palimpsest.world import suite

SEEDS = (0, 1, 2)
SHORT = {"steps": 2, "lr": 3e-3, "latents.batch": 1, "latents.pictures": 2, "latents.steps": 2}


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, model, judge) -> Path:
    """Three seeds of an erasure, each attacked, one of other settings, one of another concept."""
    asked = [
        suite.pair(name, style, seed)
        for name in ("parachute", "church")
        for style in ("photo", "sketch", "neon")
        for seed in (188, 288)
    ]
    quick = model.with_sampling(Sampling(steps=2, guidance=3.0, batch=12))
    root = tmp_path_factory.mktemp("results") / "runs"
    short = ESD(**ESD.presets["world"]).changed(SHORT)
    attack = Restoration().changed({"measure.pictures": 2})
    concept = suite.concept("parachute", "balloon")
    for seed in SEEDS:
        runner = Runner(root, quick, Panel(judge), command="palimpsest erase esd", seed=seed)
        erased = runner.run(concept, short, On(asked), force=True)
        runner.run(concept, attack, On(asked, erased))
    runner.run(concept, short.changed({"steps": 1}), On(asked), force=True)
    runner.run(suite.concept("church", "house"), short, On(asked), force=True)
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> list[Row]:
    return rows([root])


def ours(found: list[Row], **fields: object) -> list[Row]:
    return [r for r in found if all(getattr(r, n) == value for n, value in fields.items())]


# --- rows ---


def test_every_number_of_every_record_has_a_row(root: Path, found: list[Row]):
    records = {f.parent.name: Run.open(f.parent).record() for f in root.glob("*/run.json")}
    assert {row.run for row in found} == set(records)
    for name, record in records.items():
        own = ours(found, run=name)
        for number in record.numbers:
            (row,) = [r for r in own if (r.measure, r.spec) == (number.name, number.spec)]
            assert repr((row.value, row.low, row.high, row.n, row.missing)) == repr(
                (number.value, number.low, number.high, number.n, number.missing)
            )
        registry = {"erase": ERASERS, "recover": RECOVERIES}.get(record.kind)
        seed = None if registry and registry.load(record.method).seedless else record.seed
        assert {row.seed for row in own if row.kind != "original"} <= {seed}


def test_a_share_knows_the_judgements_that_it_is_of(found: list[Row]):
    shares = [row for row in found if row.share and row.judge and row.kind != "original"]
    assert {row.measure for row in shares} == {"UA", "IRA", "CRA", "Concept shown"}
    for row in shares:
        again = rates.rate([hit for *_, hit in row.judged], [c for _, c, _ in row.judged])
        assert (again.value, again.low, again.high, again.n) == pytest.approx(
            (row.value, row.low, row.high, row.n)
        )


def test_what_is_shown_and_what_is_unlearned_are_one(found: list[Row]):
    for ua in ours(found, measure="UA"):
        (shown,) = ours(found, run=ua.run, measure="Concept shown", variant=ua.variant)
        assert (shown.value, shown.low, shown.high) == pytest.approx(
            (1 - ua.value, 1 - ua.high, 1 - ua.low)
        )
        assert (ua.better, shown.better) == ("high", "low")


def test_a_variant_differs_in_its_seed_alone(found: list[Row]):
    erased = ours(found, kind="erase", measure="UA")
    by_variant: dict[str, set[int | None]] = {}
    for row in erased:
        by_variant.setdefault(row.variant, set()).add(row.seed)
    assert sorted(map(len, by_variant.values())) == [1, 1, 3]
    settings = {(row.settings, row.concepts) for row in erased}
    assert len(settings) == 3
    assert len({digest for digest, _ in settings}) == 2, "another concept has the same settings"
    attacks = ours(found, kind="recover", measure="UA")
    assert len({row.variant for row in attacks}) == 1
    assert {(row.subject_method, row.on) for row in attacks} == {("esd", "erased")}
    assert {row.subject_seed for row in attacks} == set(SEEDS)


def test_the_unedited_model_stands_once_for_each_concept(found: list[Row]):
    own = ours(found, kind="original", measure="UA")
    assert sorted(row.concepts for row in own) == ["church", "parachute"]
    assert {(row.title, row.on, row.seed, row.method) for row in own} == {
        ("unedited", "unedited", None, "")
    }


def test_a_lesson_has_rows_and_an_unfinished_run_has_none(root: Path, tmp_path: Path):
    lesson = Run(tmp_path / "runs" / "clip" / "slug-church-1")
    numbers = (Number("UA", 0.9, 0.8, 0.95, 50, "%", "zero-shot"),)
    about = {"kind": "clip", "method": "slug", "title": "SLUG", "numbers": numbers}
    lesson.write(Record(status="done", concepts=(Concept("church"),), seed=3, **about))
    begun = Run(tmp_path / "runs" / "slug-church-2")
    begun.write(Record(status="running", concepts=(Concept("church"),), **about))
    (ua,) = ours(rows([tmp_path / "runs"]), measure="UA")
    assert (ua.kind, ua.run, ua.concepts, ua.seed, ua.value) == (
        *("clip", "slug-church-1", "church", 3),
        0.9,
    )


# --- summaries ---


def test_three_seeds_are_one_number(found: list[Row]):
    told = [s for s in summaries(found) if s.kind == "erase" and s.seeds == 3]
    for s in told:
        own = ours(found, variant=s.variant, measure=s.measure, spec=s.spec)
        assert s.value == pytest.approx(sum(row.value for row in own) / 3)
        assert (s.seed_list, s.note, len(s.runs)) == ("0, 1, 2", "", 3)
    (ua,) = [s for s in told if s.measure == "UA"]
    assert ua.n == 6
    assert ua.low <= ua.value <= ua.high
    assert 0 <= ua.of_seeds <= 1 or ua.value in (0, 1)
    (time,) = [s for s in told if s.measure == "Training time"]
    assert time.sd_seeds > 0
    assert time.low >= 0


def test_recoveries_count_the_seeds_of_what_they_attacked(found: list[Row]):
    (shown,) = [s for s in summaries(found) if (s.kind, s.measure) == ("recover", "Concept shown")]
    assert (shown.seeds, shown.seed_list) == (3, "0, 1, 2")
    own = ours(found, kind="recover")
    twice = [*own, *(replace(row, seed=9, run="x") for row in own if row.subject_seed == 0)]
    (again,) = [s for s in summaries(twice) if s.measure == "Concept shown"]
    assert again.seeds == 3, "a second attack on one erasure is no further erasure"
    assert (again.value, len(again.runs)) == (pytest.approx(shown.value), 4)


def test_one_seed_says_so_and_keeps_its_interval(found: list[Row]):
    alone = [s for s in summaries(found) if s.kind == "erase" and s.seeds == 1]
    assert {s.note for s in alone} == {ONE}
    for s in alone:
        (row,) = ours(found, variant=s.variant, measure=s.measure, spec=s.spec)
        assert repr((s.value, s.low, s.high)) == repr((row.value, row.low, row.high))
    unedited = [s for s in summaries(found) if s.kind == "original"]
    assert {(s.seeds, s.note) for s in unedited} == {(0, "")}


# --- files ---


def test_csv_has_a_line_for_each_row(root: Path, found: list[Row], tmp_path: Path):
    assert run("report", root, "--out", tmp_path / "x.csv") == 0
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert len(lines) == len(found)
    for line, row in zip(lines, found, strict=True):
        assert (line["run"], line["measure"], line["spec"]) == (row.run, row.measure, row.spec)
        assert line["value"] == str(row.value)
        assert line["low"] == ("" if row.low != row.low else str(row.low))


def test_json_has_everything(root: Path, found: list[Row], tmp_path: Path):
    write_results([root], tmp_path / "x.json")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    page = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [row["value"] for row in page["rows"]] == [
        None if row.value != row.value else row.value for row in found
    ]
    assert len(page["summaries"]) == len(summaries(found))
    name = next(row.run for row in found)
    assert page["runs"][name]["arguments"]["steps"] == 2


def test_tables_have_methods_as_rows_and_say_what_rests_on_one_seed(
    root: Path, found: list[Row], tmp_path: Path
):
    write_results([root], tmp_path / "x.md")
    page = (tmp_path / "x.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    parachute = page.partition("## Erasures of parachute")[2].partition("## ")[0]
    three, one = re.findall(r"^\| (ESD[^|]*) \|.* \| (\d) \|$", parachute, re.MULTILINE)[:2]
    assert (three[1], one[1]) == ("3", "1")
    assert ("†" in three[0], "†" in one[0]) == (False, True)
    assert "† rests on one seed" in parachute
    assert "Variance over seeds" in parachute
    assert three[0] != one[0].rstrip("†"), "settings tell two variants of a method apart"
    (ua,) = [
        s for s in summaries(found) if s.kind == "erase" and s.seeds == 3 and s.measure == "UA"
    ]
    shown = next(row for row in lines if row[0] == f"| {three[0]}")
    assert f"[{100 * ua.low:.0f}," in shown[1]
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1
    assert "## Recoveries of parachute" in page
    assert "Restoration on ESD" in page


def test_latex_is_whole_and_escaped(root: Path, tmp_path: Path):
    copy = shutil.copytree(root, tmp_path / "runs")
    first = next(copy.glob("esd-church-*/run.json"))
    first.write_text(json.dumps(json.loads(first.read_text()) | {"title": "A&B_50% {x}$#^~\\"}))
    write_results([copy], tmp_path / "x.tex")
    page = (tmp_path / "x.tex").read_text(encoding="utf-8")
    assert r"A\&B\_50\% \{x\}\$\#\textasciicircum{}\textasciitilde{}\textbackslash{}" in page
    body = "\n".join(line for line in page.splitlines() if not line.startswith("%"))
    for what in ("table", "tabular"):
        begun, ended = (body.count(f"\\{word}{{{what}}}") for word in ("begin", "end"))
        assert begun == ended > 0
    for table in re.findall(r"\\begin\{tabular\}\{(l*r*)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        for line in table[1].splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(table[0]) - 1
    assert re.sub(r"\\[{}]", "", body).count("{") == re.sub(r"\\[{}]", "", body).count("}")


@given(st.text())
def test_an_escaped_text_has_nothing_that_latex_takes_for_a_command(text: str):
    plain = re.sub(r"\\text\w+\{\}|\$\\\w+\$|\$\^\\dagger\$|\$-\$|\\[&%$#_{},]", "", escaped(text))
    assert not re.search(r"[\\&%$#_{}^\n]", plain)


def test_columns_without_a_number_are_left_out(found: list[Row]):
    nan = float("nan")
    nothing = [replace(r, value=nan, judged=()) if r.measure == "IRA" else r for r in found]
    told = [name for table in tables(summaries(nothing)) for name in table.columns]
    assert "IRA" not in told
    assert "UA" in told


def test_forms_that_there_are_not_are_refused(root: Path, tmp_path: Path, capsys):
    for name, why in ((".pdf", "no page can be written"), ("", "without a suffix")):
        assert run("report", root, "--out", tmp_path / f"x{name}") == 2
        assert why in capsys.readouterr().err
    for suffix in RESULTS:
        (folder := tmp_path / f"folder{suffix}").mkdir()
        assert run("report", root, "--out", folder) == 2
        assert "is a folder" in capsys.readouterr().err
    assert run("report", tmp_path, "--out", tmp_path / "x.csv") == 2
    assert "no run lies here" in capsys.readouterr().err
    assert run("report", root, "--by", "me") == 2
    assert "--entry" in capsys.readouterr().err


def test_seeds_are_those_of_erasures_before_those_of_attacks():
    def over(*seeds: tuple[int | None, int | None]) -> tuple[int, str]:
        some = [
            Row(kind="recover", run=f"{s}-{i}", subject_seed=s, seed=i, value=0.5, n=9)
            for s, i in seeds
        ]
        (found,) = summaries(some)
        return found.seeds, found.note

    assert over((0, 0), (1, 1), (2, 2)) == (3, "")
    assert over((0, 0), (0, 1), (1, 0)) == (2, "")
    assert over((3, 0), (3, 1), (3, 2)) == (3, ONE_ERASURE)
    assert over((3, 3)) == (1, ONE)
    assert over((3, None)) == (1, ONE), "the attack is the same with every seed, the erasure is not"
    assert over((None, 0), (None, 1)) == (2, ""), "the erasure is the same with every seed"
    assert over((None, None)) == (0, "")


def test_several_processes_make_another_variant(root: Path):
    record = Run.open(next(root.glob("esd-*"))).record()
    assert settings(replace(record, processes=4)) != settings(record)


# --- a data frame ---


def test_a_data_frame_has_the_rows(root: Path, found: list[Row]):
    frame = palimpsest.results(root)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(found)
    assert frame.groupby("measure").value.mean()["UA"] == pytest.approx(
        sum(row.value for row in found if row.measure == "UA")
        / sum(row.measure == "UA" for row in found)
    )
    over = palimpsest.results([root], over="seeds")
    assert list(over.columns) == list(SUMMARY_COLUMNS)
    assert set(over.seeds) == {0, 1, 3}


def test_a_data_frame_needs_pandas(root: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PalimpsestError, match="there is 'seeds'"):
        palimpsest.results(root, over="prompts")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PalimpsestError, match=r"pip install 'palimpsest-ml\[pandas\]'"):
        palimpsest.results(root)


# --- an entry ---


def test_an_entry_is_of_one_method(root: Path, tmp_path: Path, capsys):
    out = tmp_path / "e.json"
    assert run("report", root, "--entry", out, "--by", "me") == 2
    assert "2 methods or settings, ESD" in capsys.readouterr().err
    assert run("report", root, "--entry", out) == 2
    assert "--by" in capsys.readouterr().err
    assert run("report", root, "--entry", tmp_path / "e.txt", "--by", "me") == 2
    assert ".json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_entry_holds_what_the_runs_reached(root: Path, found: list[Row], tmp_path: Path):
    (wanted,) = {r.variant for r in found if r.kind == "erase" and r.seed == 0}
    erased = sorted({row.run for row in found if row.variant == wanted})
    attacks = sorted({row.run for row in found if row.kind == "recover"})
    church = sorted({row.run for row in found if row.kind == "erase" and row.concepts == "church"})
    folders = [root / name for name in (*erased, *attacks, *church)]
    assert run("report", *folders, "--entry", tmp_path / "e.json", "--by", " we ") == 0
    page = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert (page["by"], page["kind"], page["method"]["name"]) == ("we", "erase", "esd")
    assert page["method"]["settings"]["steps"] == 2
    own = {(r["concepts"][0]["name"], "attack" in r): r for r in page["results"]}
    assert set(own) == {("parachute", False), ("parachute", True), ("church", False)}
    assert own["parachute", False]["seeds"] == [0, 1, 2]
    assert own["parachute", True]["attack"]["name"] == "restoration"
    for told in own["parachute", False]["runs"]:
        patch = (root / told["name"] / "patch.safetensors").read_bytes()
        assert told["patch"] == hashlib.sha256(patch).hexdigest()
    (ua,) = [n for n in own["parachute", False]["numbers"] if n["measure"] == "UA"]
    (s,) = [s for s in summaries(found) if (s.variant, s.measure) == (wanted, "UA")]
    assert (ua["value"], ua["low"], ua["high"], ua["seeds"]) == (s.value, s.low, s.high, 3)
    assert (
        run("report", *[root / a for a in attacks], "--entry", tmp_path / "a.json", "--by", "x")
        == 0
    )
    page = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (page["kind"], page["method"]["name"]) == ("recover", "restoration")
    assert page["results"][0]["subject"]["title"] == "ESD"
