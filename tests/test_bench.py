"""A campaign's file becomes commands, and what was done stays done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.cli import main
from palimpsest.cli.bench.campaign import read
from palimpsest.cli.bench.cost import _costs
from palimpsest.cli.bench.page import AFTER, Line, _tables
from palimpsest.cli.bench.planner import plan, said
from palimpsest.cli.tree import Call
from palimpsest.cli.verbs.bench import Bench
from palimpsest.core import processes
from palimpsest.core.errors import PalimpsestError
from palimpsest.erase import ESD
from palimpsest.report.results import Summary
from palimpsest.runs import groups
from palimpsest.runs.folder import Run
from palimpsest.world import split, suite
from palimpsest.world.vocabulary import DOMAINS

ROOT = Path(__file__).parents[1]
PROMPTS = (
    "prompt,evaluation_seed,object\na photo of a parachute,7,parachute\na photo of a cat,7,owl\n"
)
SMALL = {
    "title": "Small",
    "erasers": ["uce", {"method": "esd", "title": "ESD-u", "settings": {"train": "noxattn"}}],
    "recoveries": [{"method": "memora", "only": ["UCE"]}],
    "concepts": {"tuned": ["parachute"], "unseen": ["neon"]},
    "seeds": 2,
    "budget": 320,
}


def written(folder: Path, **changes) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def commands(folder: Path, **changes) -> list[tuple[str, ...]]:
    return [one.work.argv for one in plan(read(written(folder, **changes)))]


def test_each_erasure_and_each_attack_is_a_command(tmp_path: Path):
    planned = plan(read(written(tmp_path)))
    assert len(planned) == 2 + 2 * 2 + 2 * 2, "UCE is the same with every seed"
    by_title = {one.work.title: one.work for one in planned}
    assert len(by_title) == len(planned) == len({one.work.key for one in planned})
    esd = by_title["ESD-u, neon, seed 1"].argv
    runs = ("--runs", "runs/small")
    assert esd == ("erase", "esd", "--concept", "neon", *runs, "--seed", "1", "--train", "noxattn")
    attack = by_title["MemoRa, on UCE, parachute, attack's seed 1"]
    subject = by_title["UCE, parachute"]
    assert attack.after == (subject.key,)
    started = ("recover", "memora", f"{{{subject.key}}}", "--attack-seed", "1")
    assert attack.argv[:5] == started
    bought = {p.method.evaluations()[1] for p in planned if p.recovery}
    assert bought == {SMALL["budget"]}, "all attacks spend the same"


def test_all_attacks_spend_the_budget_whatever_a_step_costs(tmp_path: Path):
    attacks = [{"method": "memora", "title": f"{n}", "settings": {"batch": n}} for n in (2, 16)]
    planned = plan(read(written(tmp_path, recoveries=attacks)))
    assert {p.method.evaluations()[1] for p in planned if p.recovery} == {SMALL["budget"]}


def test_each_of_several_concepts_is_attacked_by_itself(tmp_path: Path):
    own = {"concepts": [["parachute", "style:neon"]], "seeds": 1, "erasers": ["esd"]}
    attack = {"recoveries": [{"method": "restoration"}], "budget": None}
    erased, *attacks = plan(read(written(tmp_path, **own, **attack)))
    assert [one.work.title for one in attacks] == [
        "Restoration of parachute, on ESD, parachute + style:neon",
        "Restoration of neon, on ESD, parachute + style:neon",
    ]
    assert attacks[1].work.argv[2:5] == (f"{{{erased.work.key}}}", "--concept", "neon")


def test_an_answer_fits_no_command_of_another_preset_or_file(tmp_path: Path, monkeypatch):
    table = tmp_path / "prompts.csv"
    table.write_text(PROMPTS)
    path = written(tmp_path, erasers=["esd"], recoveries=["memora"], flags={"prompts": str(table)})

    def keys() -> list[str]:
        return [one.work.key for one in plan(read(path))]

    first = keys()
    assert keys() == first
    table.write_text(PROMPTS + PROMPTS.split("\n", 1)[1])
    second = keys()
    assert not {*first} & {*second}, "also those of attacks on what is made anew"
    monkeypatch.setitem(ESD.presets["world"], "steps", 301)
    assert not {*second} & {*keys()}


def test_processes_that_share_one_command_carry_out_no_campaign(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(processes, "here", lambda: SimpleNamespace(size=2))
    with pytest.raises(PalimpsestError, match="without it"):
        Bench(file=tmp_path / "any.yaml")(Call(("bench",)))


def test_commands_are_said_as_a_person_says_them(tmp_path: Path):
    (first, *_) = commands(
        tmp_path,
        erasers=[{"method": "esd", "settings": {"latents.steps": 7}, "flags": {"gold": False}}],
        recoveries=[],
        concepts=[["parachute", "style:neon"]],
        models=[{"name": "world", "flags": {"draw.steps": 4}}],
        flags={"dtype": "bfloat16"},
        judges=["world"],
        seeds=[5],
    )
    assert " ".join(first) == (
        "erase esd --concept parachute style:neon --runs runs/small --judge world --seed 5 "
        "--latents.steps 7 --dtype bfloat16 --draw.steps 4 --no-gold"
    )
    assert said("levels", (400, 500)) == ["--levels", "400", "500"]
    assert said("as_", "lora") == ["--as", "lora"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"eraser": ["uce"]}, "no key 'eraser'; did you mean 'erasers'"),
        ({"erasers": ["uze"]}, "erasers, number 1: no eraser 'uze'; did you mean 'uce'"),
        ({"erasers": [{"method": "esd", "setings": {}}]}, "no key 'setings'; did you mean"),
        ({"erasers": [{"method": "esd", "settings": {"stepz": 1}}]}, "did you mean 'steps'"),
        ({"erasers": [{"method": "esd", "settings": {"steps": 0}}]}, "must be at least 1"),
        ({"erasers": [{"method": "esd", "settings": {"steps": "few"}}]}, "steps is 'few'"),
        ({"erasers": ["uce", "uce"]}, "two are called 'UCE'"),
        ({"erasers": ["ssd"], "recoveries": []}, "ssd edits no text-to-image model"),
        ({"erasers": []}, "name at least one"),
        ({"erasers": "uce"}, "erasers is no list"),
        ({"concepts": {}}, "name at least one"),
        ({"seeds": 0}, "must be 1 to"),
        ({"seeds": [1, 1]}, "named once"),
        ({"budget": 0}, "budget is 0"),
        ({"flags": {"devise": "cuda"}}, "did you mean 'device'"),
        ({"flags": {"seed": 3}}, "seed is a key of its own"),
        ({"recoveries": [{"method": "memora", "only": ["ESD"]}]}, "no eraser 'ESD'"),
        ({"recoveries": ["replay"]}, "Replay: replay attacks nothing"),
        ({"erasers": [{"method": "esd", "settings": {1: 2}}]}, "no setting 1"),
        ({"models": []}, "name at least one"),
        ({"models": ["world", "world"]}, "models: two are called 'world'; give each a title"),
        ({"judges": []}, "judges and measures: name at least one"),
        ({"concepts": [[]]}, "is no name"),
        ({"concepts": [""]}, "is no name"),
        ({"concepts": [2024]}, "2024 is no name; quote it"),
        ({"concepts": [["kite", "kite"]]}, "names one twice"),
        ({"concepts": ["kite", "kite"]}, "kite stands there twice"),
        ({"concepts": {"a": ["kite"], "b": ["owl", "kite"]}}, "kite stands there twice"),
        ({"concepts": {2024: ["kite"]}}, "the group 2024 is no text"),
        ({"flags": {"draw.steps": "many"}}, "flags: .*many"),
        ({"flags": {"prompts": "gone.csv"}}, "UCE, parachute: .*gone.csv"),
        ({"judges": ["word"]}, "UCE, parachute: --judge word: no such judge; did you mean 'world'"),
        ({"concepts": ["kite", "parachut"]}, "UCE, parachut: .* did you mean 'parachute'"),
        ({"concepts": ["kite", "object:kite"]}, "kite stands there twice"),
        ({"measures": ["UA", "UA"]}, "measures: 'UA' stands there twice"),
        (
            {"erasers": ["uce", {"method": "uce", "title": "B"}]},
            "'UCE, .*' and 'B, .*' are the same",
        ),
        ({"page": "."}, "page: . is a folder"),
        ({"sheets": __file__}, "sheets: .* is a file"),
        (
            {"erasers": [{"method": "esd", "title": t} for t in ("a b", "A-b")], "sheets": "s"},
            "two erasers would be a-b.jpg",
        ),
        ({"concepts": ["object:neon"]}, "of kind 'object' and is of kind 'style'"),
        (
            {"recoveries": [{"method": "memora", "settings": {"steps": 10}}], "budget": 1000},
            "steps: the budget decides it",
        ),
    ],
)
def test_what_there_is_not_is_refused_by_name(tmp_path: Path, changes, sentence: str):
    with pytest.raises(PalimpsestError, match=sentence) as caught:
        commands(tmp_path, **{"recoveries": [], **changes})
    assert "\n" not in str(caught.value)


LEAVES = st.one_of(
    *(
        st.none(),
        st.booleans(),
        st.integers(-3, 2025),
        st.floats(),
        st.dates(),
        st.text(max_size=4),
    ),
    st.sampled_from(["uce", "memora", "world", "parachute", "style:neon", "auto", "published"]),
)
NAMES = ("method", "title", "settings", "flags", "seeds", "budget", "only", "preset", "steps")
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
VARIANTS = st.lists(
    st.dictionaries(st.sampled_from(NAMES[1:]), VALUES, max_size=2).flatmap(
        lambda own: st.sampled_from(["esd", "uce", "memora", "illusion"]).map(
            lambda method: {"method": method, **own}
        )
    ),
    max_size=2,
)


def test_a_table_says_which_way_is_good_and_over_what(tmp_path: Path):
    concepts = {"concept": ["kite", ["kite", "owl"]], "other": ["cat"]}
    own = {"method": "restoration", "title": "Undo"}
    more = {"measures": ["CLIP cosine, others", "UA"], "models": ["world"], "seeds": 1}
    campaign = read(written(tmp_path, concepts=concepts, recoveries=[own], **more))
    summary = {f.name: "" for f in fields(Summary)} | {
        **{"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "missing": 0, "unit": "%"},
        "seeds": 1,
        "meaning": "how alike. Higher is more alike; over the concept low is thorough.",
    }
    shown = Summary(**summary | {"measure": AFTER})
    cosine = Summary(**summary | {"measure": "CLIP cosine, others", "unit": ""})
    every = [names for held in campaign.groups.values() for names in held]
    erased = Line("UCE", "world", "", "", "", {names: [cosine] for names in every})
    together = Line("UCE", "world", "Undo of owl", "owl", "erased", {("kite", "owl"): [shown]})
    (_, heads, _, _), (_, _, body, _) = _tables(campaign, [erased, together])
    assert heads[2:4] == ["CLIP cosine, others ↑, concept", "CLIP cosine, others ↑, other"]
    assert len(heads) == 6
    assert [cell and cell.value for cell in body[0][2:]] == [0.5, None]


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.one_of(VALUES, VARIANTS) for name in ("erasers", "recoveries", "models")},
            **{name: VALUES for name in ("concepts", "seeds", "flags", "judges", "title", "page")},
            "budget": st.one_of(VALUES, st.integers(1, 5000)),
        },
    )
)
def test_whatever_stands_in_a_file_is_planned_or_refused_by_one_sentence(changes):
    with TemporaryDirectory() as folder:
        path = Path(folder, "campaign.yaml")
        path.write_text(yaml.safe_dump({"erasers": ["uce"], "concepts": ["kite"], **changes}))
        said = ""
        try:
            plan(read(path))
        except PalimpsestError as error:
            said = str(error)
        assert "\n" not in said


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "{}", "!!python/object:os.system {}"])
def test_what_is_no_campaign_is_refused(tmp_path: Path, text: str, capsys):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert main(["bench", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [path]


def tiny(folder: Path, **changes) -> Path:
    """A campaign of commands that take a second or two each."""
    table = folder / "prompts.csv"
    table.write_text(PROMPTS)
    flags = {"prompts": str(table), "draw.steps": 4, "gold": False}
    own = {
        "erasers": ["uce"],
        "recoveries": ["restoration"],
        "seeds": 1,
        "flags": flags,
        "runs": str(folder / "runs"),
        "page": str(folder / "page.md"),
    }
    return written(folder, **own | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign that was carried out, one command of which fails."""
    folder = tmp_path_factory.mktemp("campaign")
    concepts = {"unknown": ["owl"], "known": ["parachute"]}  # who asks for an owl gets a cat
    assert main(["bench", str(tiny(folder, concepts=concepts))]) == 1
    return folder


def test_a_campaign_is_told(done: Path, capsys):
    page = (done / "page.md").read_text()
    assert "| UCE | – |" in page, "any seed gives the same"
    assert "Restoration on UCE" in page
    compared = groups.read([done / "runs"])
    assert compared.title == "Small"
    assert [compared.group([name]) for name in ("parachute", "owl")] == ["known", "unknown"]
    assert sorted(compared.called.values()) == ["Restoration", "UCE"]
    kinds = sorted(Run(p.parent).record().kind for p in (done / "runs").glob("*/run.json"))
    assert kinds == ["erase", "erase", "original", "recover"], "one of them is gold's"


def test_a_measure_that_no_run_says_is_warned_of(done: Path, capsys):
    own = yaml.safe_load((done / "small.yaml").read_text())
    own |= {"measures": ["UA", "CLIP cosine, other"], "page": str(done / "other.md")}
    (done / "other.yaml").write_text(yaml.safe_dump(own))
    (done / "other.md").write_text("of the whole")
    main(["bench", str(done / "other.yaml"), "--only", "UCE, parachute"])
    assert (done / "other.md").read_text() == "of the whole"
    assert "no run says 'CLIP cosine, other'; did you mean 'CLIP cosine, others'" in (
        " ".join(capsys.readouterr().err.split())
    )
    own |= {"measures": ["UA", "CLIP cosine, others"], "concepts": {"known": ["parachute"]}}
    (done / "other.yaml").write_text(yaml.safe_dump(own))
    main(["bench", str(done / "other.yaml"), "--only", "UCE, parachute"])
    assert "no run says" not in capsys.readouterr().err
    assert "CLIP cosine, others" in (done / "other.md").read_text()


def test_a_command_that_fails_stops_no_other_and_is_tried_again(done: Path, capsys):
    records = {p: p.stat().st_mtime_ns for p in (done / "runs").glob("*/run.json")}
    page = (done / "page.md").read_text()
    assert "Not there yet: UCE, owl, Restoration, on UCE, owl." in page
    assert main(["bench", str(done / "small.yaml"), "--only", "UCE, parachute"]) == 0
    assert (done / "page.md").read_text() == page
    assert "no page is written: 2 of 4 commands are left to do" in capsys.readouterr().out
    assert main(["bench", str(done / "small.yaml")]) == 1
    said_ = capsys.readouterr()
    assert "UCE, owl: failed with code 2: palimpsest: the model hardly knows 'owl'" in said_.err
    assert "Restoration, on UCE, owl: failed with code 2" in said_.err
    assert "4/4" in said_.err
    assert "Erasures" in said_.out
    assert {p: p.stat().st_mtime_ns for p in records} == records, "what is done stays done"
    assert (done / "page.md").read_text() == page


def test_a_killed_campaign_goes_on_to_the_same(done: Path, tmp_path: Path):
    path = tiny(tmp_path, concepts=["parachute"])
    words = [sys.executable, "-m", "palimpsest", "bench", str(path)]
    going = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not [*(tmp_path / "runs" / ".bench").glob("*/answer.json")]:
        assert going.poll() is None
        time.sleep(0.05)
    os.kill(going.pid, signal.SIGKILL)
    going.wait()
    assert main(["bench", str(path)]) == 0
    for run in (done / "runs").glob("*-*"):
        for file in (*run.glob("images/*.png"), *run.glob("patch.safetensors")):
            twin = tmp_path / "runs" / run.name / file.relative_to(run)
            assert twin.read_bytes() == file.read_bytes(), file.name


def test_only_some_are_chosen_with_what_they_start_from(tmp_path: Path, capsys):
    path = tiny(tmp_path, concepts=["parachute"], erasers=["uce", "esd"])
    assert main(["bench", str(path), "--dry-run", "--only", "restoration, on uce", "--json"]) == 0
    text = "\n".join(json.loads(capsys.readouterr().out)["text"])
    assert "UCE, parachute" in text
    assert "Restoration, on UCE, parachute" in text
    assert "ESD" not in text
    assert not (tmp_path / "runs").exists()
    assert main(["bench", str(path), "--only", "mace"]) == 2
    assert "--dry-run lists them" in capsys.readouterr().err


def test_a_dry_run_counts_shared_pictures_once_and_no_gold_that_is_not_wanted(tmp_path: Path):
    table = tmp_path / "prompts.csv"
    table.write_text(PROMPTS)
    concepts, flags = ["parachute", "van gogh"], {"prompts": str(table), "draw.steps": 4}
    found = {}
    for gold in (False, True):
        own = {"concepts": concepts, "erasers": ["uce"], "recoveries": [], "seeds": 1}
        path = written(tmp_path, **own, flags={**flags, "gold": gold}, runs=str(tmp_path / "r"))
        found[gold] = _costs(plan(read(path)))["UCE"].pictures
    assert found == {False: 2 * 2 + 2, True: 2 * 2 + 2 + 2 * 2}


def test_reported_concepts_are_drawn_from_the_rest():
    names = split.unseen()
    assert not {*names} & {*split.TUNED}
    kinds = [suite.kind_of(name) for name in names]
    assert (kinds.count("object"), kinds.count("style"), kinds.count("identity")) == (2, 2, 1)
    assert {*names} <= {name for held in DOMAINS.values() for name in held}


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda p: p.stem)
def test_recipes_can_be_planned(path: Path):
    campaign = read(path)
    assert plan(campaign)
    if "unseen" in campaign.groups:
        assert campaign.groups["tuned"] == tuple((name,) for name in split.TUNED)
        assert campaign.groups["unseen"] == tuple((name,) for name in split.unseen())
