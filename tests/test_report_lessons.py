"""The report of a CLIP or a LLaVA that forgot: what went and what stayed, read from its record."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_report import look_through, settle

from palimpsest.metrics.rates import wilson
from palimpsest.report import write_report
from palimpsest.report.sections.layers import layers, next_best

EVIL = "<script>alert(1)</script> a house"
VALUES, FRONT, BACK = (f"text_encoder.layers.{i}.v_proj.weight" for i in range(3))
SEARCH: dict[str, Any] = {
    "layers": [
        {"name": VALUES, "importance": 0.10, "alignment": 0.02, "front": True},
        {"name": FRONT, "importance": 0.02, "alignment": 0.01, "front": True},
        {"name": BACK, "importance": 0.01, "alignment": 0.30, "front": False},
    ],
    "trials": [
        {"layer": VALUES, "scale": 2.0, "forget": 0.0, "keep": 0.75},
        {"layer": VALUES, "scale": 1.0, "forget": 0.5, "keep": 1.0},
        {"layer": FRONT, "scale": 8.0, "forget": 0.25, "keep": 0.5},
    ],
    "layer": VALUES,
    "rule": "forget accuracy @1 is 0",
}
SEARCH["layers"] = [{**row, "tower": "text", "step": 1.0} for row in SEARCH["layers"]]


def share(name: str, hits: int, n: int) -> dict[str, Any]:
    rate = wilson(hits, n)
    found = {"name": name, "value": rate.value, "low": rate.low, "high": rate.high, "n": n}
    return found | {"unit": "%", "spec": "over 24 classes, 64 px"}


def numbers(kind: str, left: int, kept: int) -> list[dict[str, Any]]:
    """`left` of 64 pictures of the concept still named, `kept` of 184 others named right."""
    names = {
        "clip": ("forget accuracy @1", "retain accuracy @1"),
        "llava": ("name said", "others named"),
    }[kind]
    return [share(names[0], left, 64), share(names[1], kept, 184)]


def lesson(folder: Path, kind: str, title: str, left: int, kept: int, **fields: Any) -> Path:
    """A finished run as the tool would leave it; unedited, 64 of 64 and 182 of 184 were named."""
    record = {
        "format": 1,
        "kind": kind,
        "status": "done",
        "started": "2026-01-01T00:00:00+00:00",
        "command": f"palimpsest {kind} {title.lower()} --concept 'mira voss'",
        "method": title.lower(),
        "title": title,
        "arguments": {"batch": 64},
        "preset": "world",
        "names": ["mira voss"],
        "seed": 0,
        "model": {"name": "world", "identity": "0123456789abcdef"},
        "forget": {"source": "world", "pictures": 128, "digest": "ab", "skipped": ["a.jpg: torn"]},
        "retain": {"source": "world", "pictures": 512, "digest": "cd", "skipped": []},
        "validation": 248,
        "test": 248,
        "seconds": {"train": 12.5},
        "peak_memory_mb": 345.0,
        "patch_bytes": 281000,
        "baseline": numbers(kind, 64, 182),
        "numbers": numbers(kind, left, kept),
        "search": {},
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | fields))
    return folder


def answered(folder: Path) -> None:
    """Four pictures: two of what is forgotten, and two others of which one is called otherwise."""
    said = [
        ("mira voss", "mira voss.", EVIL),
        ("mira voss", "Mira Voss", "it is mira voss"),
        ("cat", "a cat", "a cat"),
        ("owl", "an owl", "a house"),
    ]
    (folder / "images").mkdir()
    rows = []
    for i, (shows, before, after) in enumerate(said):
        file = f"images/{i:05d}.png"
        Image.fromarray(np.full((8, 8, 3), 40 * i, "uint8")).save(folder / file)
        row = {"file": file, "shows": shows, "question": "Who or <b>what</b> is it?"}
        rows.append({**row, "before": before, "after": after})
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands leave their runs: those of CLIP and of LLaVA a folder deeper."""
    root = tmp_path_factory.mktemp("lessons") / "runs"
    lesson(root / "clip" / "slug-1", "clip", "SLUG", 0, 181, search=SEARCH)
    lesson(root / "clip" / "fine_tune-2", "clip", "FineTune", 63, 180)
    ascent = {"arguments": {"batch": 64, "retain": 0.0}}
    lesson(root / "clip" / "ascent-3", "clip", "GradientAscent", 0, 100, **ascent)
    ascent = {"arguments": {"batch": 64, "retain": 1.0}}
    lesson(root / "clip" / "ascent-4", "clip", "GradientAscent", 0, 170, **ascent)
    lesson(root / "clip" / "slug-5", "clip", "SLUG", 20, 180, test=120, short="no layer <reached>")
    llava = lesson(root / "llava" / "slug-6", "llava", "SLUG", 3, 61, search=SEARCH)
    answered(llava)
    return root


def told(page: Path) -> str:
    """The page's words without scripts, styles and markup."""
    text = re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.S)
    text = re.sub(r"</?(b|em)>", "", text)
    text = unescape(re.sub(r"<[^>]*>", " ", text))
    return " ".join(text.translate({0x202F: " ", 0xA0: " "}).split())


def test_the_headline_says_what_went_and_what_went_with_it(runs: Path, tmp_path: Path) -> None:
    """0 of 64 left; 61 of 184 others = 33 %, 182 of 184 before; 20 of 64 left = 69 % gone."""
    for folder, said in (
        ("clip/slug-1", "SLUG made the world's CLIP forget mira voss"),
        ("clip/fine_tune-2", "FineTune did not make the world's CLIP forget mira voss"),
        ("clip/slug-5", "SLUG made the world's CLIP forget mira voss in part"),
        ("llava/slug-6", "SLUG made the world's LLaVA forget mira voss, and much else with it"),
    ):
        page = write_report([runs / folder], tmp_path / "report.html")
        assert f"<title>{said}</title>" in unescape(page.read_text())
    assert "the world's LLaVA still names 5 % [2, 13], before 100 % [94, 100]" in told(page)
    assert "it names 33 % [27, 40] right, before 99 % [96, 100]" in told(page)


def test_a_search_that_fell_short_says_so(runs: Path, tmp_path: Path) -> None:
    page = write_report([runs / "clip" / "slug-5"], tmp_path / "report.html")
    assert "The search fell short: no layer <reached>." in told(page)
    assert "no layer <reached>" not in page.read_text()


def test_numbers_stand_before_and_after_with_their_spec(runs: Path, tmp_path: Path) -> None:
    text = told(write_report([runs / "clip" / "slug-1"], tmp_path / "report.html"))
    line = r"forget accuracy @1 ↓ over 24 classes, 64 px 100 % \[94, 100\] · n = 64 0 % \[0, 6\]"
    assert re.search(line, text)
    assert "original unedited SLUG erased" in text
    assert "Forgets 128 pictures, world, 1 skipped" in text
    assert "palimpsest clip slug --concept 'mira voss'" in text
    assert text.count("Folder slug-1") == 1, "the unedited model has no run of its own"


def test_methods_stand_beside_one_another_only_on_the_same_sets(runs: Path, tmp_path: Path) -> None:
    page = write_report([runs / "clip"], tmp_path / "report.html")
    tables = re.findall(r"What is left of (.*?)</table>", page.read_text(), re.S)
    assert len(tables) == 2, "the fifth run was measured on other pictures"
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>", tables[0].split("<tbody>")[1], re.S)
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in rows]
    assert sorted(rows[1:]) == [
        "FineTune preset world",
        "GradientAscent retain 0.0",
        "GradientAscent retain 1.0",
        "SLUG preset world",
    ]
    assert rows[0] == "unedited"
    text = told(page)
    assert "12.5 s 345 MB 281 kB" in text
    assert "<title>5 erasures" not in page.read_text()
    assert "Erasing mira voss: " in text


def test_all_kinds_of_runs_are_one_page(runs: Path, tmp_path: Path) -> None:
    """Runs of pictures beside the folders of the others; what lies there twice counts once."""
    from test_report import write_pictures, write_record

    root = shutil.copytree(runs, tmp_path / "runs")
    world = write_record(root / "original-1", "original", "original", concept=None)
    write_pictures(world, {}, "parachute")
    esd = write_record(root / "esd-parachute-2", "erase", "ESD", original=world.name)
    write_pictures(esd, {"parachute": "balloon"}, "parachute")
    for name in (world.name, esd.name):
        shutil.copytree(root / name, root / "demo" / name)
    page = write_report([root], tmp_path / "report.html")
    text = page.read_text()
    assert text.count('<section id="s') == 7
    assert "<title>Erasing parachute and mira voss: 4 methods, 7 erasures" in text
    heads = re.findall(r'<h2 class="story" [^>]*>(.*?)</h2>', text)
    assert heads[0] == "ESD and parachute", "pictures come first"
    links = set(re.findall(r'<a href="#(\w+)"', text)) - {"measures"}
    assert links == set(re.findall(r'<section id="(s\d+)"', text))


def test_answers_are_shown_as_text_with_their_pictures(runs: Path, tmp_path: Path) -> None:
    page = write_report([runs / "llava" / "slug-6"], tmp_path / "report.html")
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; a house" in text
    assert "<b>what</b>" not in text
    cards = re.findall(r"<figure>(.*?)</figure>", text, re.S)
    assert ["".join(re.findall(r"[✓✗]", card)) for card in cards] == ["✓✗", "✓✓", "✓✓", "✓✗"]
    assert all("data:image/webp" in card for card in cards)
    assert "2 of 2 pictures, the first" in text


def dots(plot: str) -> dict[str, ElementTree.Element]:
    """A layer's name → its dot."""
    marks = [g for g in ElementTree.fromstring(plot).iter("g") if g.find("title") is not None]
    return {(mark.findtext("title") or "").partition("\n")[0]: mark for mark in marks}


def test_the_plot_holds_every_layer_its_front_and_its_trials() -> None:
    figure = layers(SEARCH)
    assert figure
    found = dots(figure["plot"])
    assert [*found] == [VALUES, FRONT, BACK]
    assert ["hollow" in mark.get("class", "") for mark in found.values()] == [False, False, True]
    ringed = [mark.find("circle") is not None for mark in found.values()]
    assert ringed == [True, False, False]
    links = ElementTree.fromstring(figure["plot"]).findall(".//g[@class='front hue-1']/line")
    assert len(links) == 1, "the front's two are linked"
    lines = (found[VALUES].findtext("title") or "").replace("\u202f", " ").splitlines()
    assert lines[1:] == [
        "importance 0.1 · alignment 0.02",
        "λ 1: 50 % left, 100 % of the others kept",
        "λ 2: 0 % left, 75 % of the others kept",
    ]
    assert [trial["scale"] for trial in next_best(SEARCH)] == [2.0, 8.0]
    assert layers({}) is None
    broken = [{**SEARCH["layers"][0], "importance": -1.0}]
    assert layers({**SEARCH, "layers": broken}) is None


def test_a_block_of_attention_is_its_queries_keys_and_values() -> None:
    names = [f"text_encoder.layers.0.self_attn.{p}_proj.weight" for p in ("q", "k", "v", "out")]
    rows = [{**SEARCH["layers"][0], "name": name} for name in names]
    figure = layers({"layers": rows, "block": "text_encoder.layers.0.self_attn"})
    assert figure
    ringed = [mark.find("circle") is not None for mark in dots(figure["plot"]).values()]
    assert ringed == [True, True, True, False]


def test_a_person_can_hover_over_the_layers(browser: Any, runs: Path, tmp_path: Path) -> None:
    page = write_report([runs], tmp_path / "report.html")
    view = browser.new_page(
        viewport={"width": 390, "height": 900}, color_scheme="dark", reduced_motion="reduce"
    )
    faults: list[str] = []
    view.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.goto(page.as_uri())
    view.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    look_through(view)
    view.wait_for_function("[...document.images].every(i => i.src && i.complete)")
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dot = view.locator(".plane .mark").first
    dot.scroll_into_view_if_needed()
    settle(view)
    box = dot.bounding_box()
    view.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    view.wait_for_selector(".tip:not([hidden])")
    label = view.locator(".tip").text_content()
    assert VALUES in label
    assert "importance 0.1" in label
    assert faults == []
    view.close()
