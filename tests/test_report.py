"""The report: what a person sees must be what the run folders say, on any screen, offline."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import NONE
from palimpsest.metrics.rates import wilson
from palimpsest.report import write_report
from palimpsest.world.render import render

STYLES = ("photo", "sketch", "mosaic", "neon", "van gogh")
NEIGHBOURS = ("balloon", "kite", "church", "boat")
PEOPLE = ("mira voss", "otto finch")
EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)> {o}'
SPACES = {0x202F: " ", 0xA0: " "}


def asked() -> list[tuple[str, str | None, dict[str, str]]]:
    """Subject, style and what the prompt asks for, for every picture of a run."""
    styled = [(o, s) for s in STYLES for o in ("parachute", "parachute", *NEIGHBOURS)]
    things: list[tuple[str, str | None, dict[str, str]]]
    things = [(o, s, {"object": o, "style": s}) for o, s in styled]
    return [*things, *((name, None, {"identity": name}) for name in PEOPLE for _ in range(2))]


def write_pictures(folder: Path, swap: dict[str, str], only: str | None = None) -> None:
    """Pictures and scores of a model that draws one thing for another."""
    images, scores = [], []
    (folder / "images").mkdir(parents=True)
    for i, (subject, style, asks) in enumerate(asked()):
        if only and subject != only:
            continue
        drawn = swap.get(subject, subject) if i % 5 else subject  # every fifth holds out
        picture = render(drawn, style, i)
        noise = np.random.default_rng(i).normal(0, 5, picture.shape)
        file = f"images/{i:04d}.png"
        Image.fromarray(np.clip(picture + noise, 0, 255).astype("uint8")).save(folder / file)
        prompt = f"a {subject} image in {style} style." if style else f"a portrait of {subject}"
        prompt = EVIL if i == 0 else prompt
        images.append({"file": file, "prompt": prompt, "seed": i, "index": 0, "asks": asks})
        labels = {"object": drawn if style else NONE, "style": style or NONE}
        labels["identity"] = NONE if style else drawn
        scores.append({"file": file, "labels": labels, "confidence": dict.fromkeys(labels, 0.98)})
    for name, rows in (("images.jsonl", images), ("scores.jsonl", scores)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def number(name: str, hits: int, n: int) -> dict[str, Any]:
    rate = wilson(hits, n)
    spec = "world judge v1, object head, 64 px, DDIM 20 steps, guidance 3"
    return {"name": name, "value": rate.value, "low": rate.low, "high": rate.high, "n": n} | {
        "unit": "%",
        "spec": spec,
    }


def write_record(folder: Path, kind: str, title: str, **fields: Any) -> Path:
    method = title.lower()
    record = {
        "format": 1,
        "kind": kind,
        "status": "done",
        "started": "2026-01-01T00:00:00+00:00",
        "command": f"palimpsest {kind} {method} --concept 'parachute <b>' --runs runs",
        "method": method,
        "title": title,
        "arguments": {"steps": 200, "eta": 1.0, "train": "xattn"},
        "given": {"steps": 200},
        "preset": "world",
        "model": {"name": "world", "identity": "0123456789abcdef", "sampling": "DDIM 20 steps"},
        "concept": {"name": "parachute", "kind": "object", "anchor": "balloon", "keep": []},
        "seed": 0,
        "versions": {"torch": "2.9"},
        "git": {"commit": "abcdef012345", "dirty": True},
        "seconds": {"train": 41.2, "pictures": 20.1, "judge": 1.0},
        "peak_memory_mb": 812.0,
        "judge": {"name": "world judge", "version": "1", "resolution": 64, "classes": []},
        "numbers": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record | fields))
    return folder


def curve(hits: list[int], n: int = 48) -> list[dict[str, Any]]:
    points = ((20 * i, wilson(h, n)) for i, h in enumerate(hits))
    return [
        {"step": s, "evaluations": s, "value": r.value, "low": r.low, "high": r.high, "n": n}
        | {"says": [int(i < hits[s // 20]) for i in range(n)]}
        for s, r in points
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, two erasures and three recoveries, as the tool would leave them."""
    root = tmp_path_factory.mktemp("report") / "runs"
    world = write_record(root / "original-1", "original", "original", concept=None)
    write_pictures(world, {})
    fid = {"name": "world-FID", "value": 12.34, "low": None, "high": None, "n": 600, "unit": ""}
    numbers = [number("UA", 70, 72), number("IRA", 98, 100), number("CRA", 288, 300), fid]
    gold = write_record(root / "gold-parachute-9", "erase", "Gold", original=world.name)
    write_pictures(gold, {"parachute": "umbrella"})
    for name, title in (("esd-parachute-2", "ESD"), ("uce-parachute-3", "UCE")):
        fields = {"original": world.name, "patch_bytes": 123456, "edit_norm": 1.23}
        fields["gold"] = gold.name
        esd = write_record(root / name, "erase", title, numbers=numbers, **fields)
        write_pictures(esd, {"parachute": "balloon"})
    for i, (arm, subject, hits) in enumerate(
        [
            ("published", "esd-parachute-2", [1, 4, 17, 26]),
            ("plain", "esd-parachute-2", [1, 9, 30, 44]),
            ("published", None, [46, 47, 48, 48]),
            ("published", gold.name, [0, 1, 5, 10]),
        ]
    ):
        links = {"original": world.name, "subject": subject, "arm": arm, "curve": curve(hits)}
        links["arguments"] = {"pictures": arm}
        write_pictures(
            write_record(root / f"memora-{i}", "recover", "MemoRa", **links), {}, "parachute"
        )
    return root


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    names = ("esd-parachute-2", "memora-0", "memora-1", "memora-2", "memora-3")
    return write_report([runs / name for name in names], runs / "report.html")


def verdict(page: Path) -> str:
    """The verdict's words without their markup."""
    inside = " ".join(re.findall(r'<p class="verdict">(.*?)</p>', page.read_text(), re.S))
    return unescape(re.sub(r"<[^>]*>", "", inside)).translate(SPACES)


def test_verdict_says_what_the_records_say(page: Path) -> None:
    """Shares by hand: 70/72 = 97.2 %, 98/100, 288/300 = 96 %, 26/48 = 54.2 %, 44/48 = 91.7 %."""
    told = verdict(page)
    assert "the world model shows it in 100 % of 10 pictures" in told
    assert "ESD made it forget parachute: 97 % of 72 pictures no longer show it [90, 99]" in told
    assert "neighbours kept 98 % [93, 99], other domains 96 % [93, 98]" in told
    assert "MemoRa (published pictures) brought it back in 54 % of 48 pictures [40, 67]" in told
    assert "MemoRa (plain pictures) brought it back in 92 % of 48 pictures [80, 97]" in told
    assert "after 60 steps, from 2 %" in told
    assert "MemoRa on the unedited model ends at 100 % [93, 100] after 60 steps" in told


def test_what_came_back_stands_against_gold(page: Path) -> None:
    """At step 60 (26 − 10)/48 = 33 points; the areas by trapezia are 34.5/144 and 11/144."""
    told, text = verdict(page), unescape(page.read_text()).translate(SPACES)
    assert "without ever being shown parachute, has it in 20 % of 10 pictures" in told
    assert "(published pictures) teaches it to gold in 21 % [12, 34] after 60 steps" in told
    assert re.search(r"stands \+16 points \[\+\d+, \+\d+\] above gold, so some .* hidden", told)
    assert "The same MemoRa (plain pictures)" not in told, "gold was not attacked with those"
    assert re.search(r"<b>\+33 points</b><small>\[\+\d+, \+\d+\]</small>", text)
    columns = re.search(r'<div class="names ">(.*?)</div>', text, re.S)
    assert columns
    titles = re.findall(r"<b>(.*?)</b>", columns[1])
    assert titles == ["original", "erased", "recovered", "recovered", "gold"]
    assert "gold is no clean control" not in told


def test_the_profile_says_how_long_it_stays_hidden(page: Path) -> None:
    """Half of 46 in 48 is 23: between 17 at 40 and 26 at 60 evaluations, 40 + 20·6/9 = 53.3."""
    text = unescape(page.read_text())
    (profile,) = re.findall(r"How long would it stay hidden\?(.*?)<h2 ", text, re.S)
    assert "at a budget of 60 that all recoveries share" in profile
    assert re.search(r"MemoRa \(published pictures\)</th><td>\s*53<small>", profile)
    assert "> 60" in profile, "nine tenths were not reached"
    assert "<b>Undecided</b>: it stays open under MemoRa (published pictures)" in profile
    assert "within ±15 points" in profile
    assert "n = 48 pictures" in profile


def test_gold_is_no_control_for_an_edit_of_the_text_encoder(runs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(runs, tmp_path / "runs")
    esd = root / "esd-parachute-2"
    record = json.loads((esd / "run.json").read_text()) | {"components": ["text_encoder"]}
    (esd / "run.json").write_text(json.dumps(record))
    assert "gold is no clean control" in verdict(write_report([esd], tmp_path / "report.html"))


def test_gold_alone_is_a_story_too(runs: Path, tmp_path: Path) -> None:
    page = write_report([runs / "gold-parachute-9"], tmp_path / "report.html")
    assert "<title>Gold and parachute</title>" in page.read_text()


def test_verdict_admits_failure(tmp_path: Path, runs: Path) -> None:
    root = shutil.copytree(runs, tmp_path / "runs")
    esd = root / "esd-parachute-2"
    record = json.loads((esd / "run.json").read_text()) | {"numbers": [number("UA", 3, 72)]}
    (esd / "run.json").write_text(json.dumps(record))
    page = write_report([esd], tmp_path / "report.html")
    assert "did not make it forget parachute: only 4 % of 72 pictures" in verdict(page)
    assert "<title>ESD did not erase parachute</title>" in page.read_text()


def test_names_in_the_verdict_are_never_markup(runs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(runs, tmp_path / "runs")
    esd = root / "esd-parachute-2"
    record = json.loads((esd / "run.json").read_text()) | {"title": "<i>ESD</i>"}
    record["concept"]["name"] = "<b>parachute"
    (esd / "run.json").write_text(json.dumps(record))
    text = write_report([esd], tmp_path / "report.html").read_text()
    said = "&lt;i&gt;ESD&lt;/i&gt; made it forget <em>&lt;b&gt;parachute</em>"
    assert said in text
    assert "<b>parachute" not in text


def test_text_of_people_is_never_markup(page: Path) -> None:
    text = page.read_text()
    assert EVIL not in text
    assert "&lt;script&gt;document.title=" in text
    assert "'parachute <b>'" not in text


def test_whole_folder_is_one_page_with_overview(runs: Path, tmp_path: Path) -> None:
    text = write_report([runs], tmp_path / "report.html").read_text()
    assert "<title>Erasing parachute: ESD and UCE</title>" in text
    assert "At a glance" in text
    assert len(text) < 1_000_000


def bare(page: Path) -> str:
    """The page without its pictures' bytes."""
    text = re.sub(r"data:image/webp;base64,[^\"]*", "", page.read_text())
    return re.sub(r'id="album">.*?<', "<", text, flags=re.S)


def test_a_page_is_small_and_fetches_nothing(page: Path) -> None:
    """Of its 400 kB nearly all is pictures; no address leads out of it."""
    text = bare(page)
    assert len(text) < 200_000
    assert not re.search(r"(?:src|href)=\"(?!#|data:|\")|url\(|@import|https?://", text)


def test_concept_shown_stands_once(tmp_path: Path) -> None:
    """The unedited model and the erasure on one line, an answer to other prompts right below."""
    fixtures = Path(__file__).parent / "fixtures" / "runs"
    runs = [next(fixtures.glob(f"{m}-church-on-spm-*")) for m in ("memora", "unlearn_diff_atk")]
    text = unescape(write_report(runs, tmp_path / "report.html").read_text())
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", text, re.S)
    names = [re.findall(r">(Concept shown)(?:</abbr>|, <)", row) for row in rows]
    first = next(i for i, found in enumerate(names) if found)
    assert [bool(found) for found in names].count(True) == 2
    assert names[first + 1], "the other spec stands right below"
    assert rows[first].count("n = 2") == 3, "unedited, erased and recovered are on one line"
    assert rows[first].count("Concept shown") == 1
    assert '<span class="unseen">Concept shown, </span>' in rows[first + 1]
    assert "answers to what was found" in rows[first + 1]
    assert "judge v?" not in text


def test_headings_and_tables_are_sound(page: Path, runs: Path, tmp_path: Path) -> None:
    """One h1, no level left out, every table named, every head scoped, every picture told."""
    for each in (page, write_report([runs], tmp_path / "report.html")):
        text = bare(each)
        levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))
        assert all("<caption" in table for table in re.findall(r"<table.*?</table>", text, re.S))
        assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", text))
        assert all(re.search(r'alt="[^"]', img) for img in re.findall(r"<img[^>]*>", text))
        ids = re.findall(r' id="([^"]*)"', text)
        assert len(ids) == len(set(ids))


def erasure(root: Path, method: str, concept: str, seed: int) -> None:
    about = {"name": concept, "kind": "object", "anchor": "balloon", "keep": []}
    run = f"{method.lower()}-{concept}-{seed}".replace(" ", "_")
    write_record(
        root / run, "erase", method, concept=about, seed=seed, numbers=[number("UA", 9, 9)]
    )
    (root / run / "images").mkdir()
    Image.new("RGB", (8, 8)).save(root / run / "images" / "0.png")
    row = {"file": "images/0.png", "prompt": concept, "seed": 0, "index": 0, "asks": {}}
    (root / run / "images.jsonl").write_text(json.dumps(row) + "\n")


def test_a_page_over_fifty_erasures_can_be_read(tmp_path: Path) -> None:
    """Its title is short; each section's heading differs from every other; all are in a list."""
    methods = [f"Method {letter}" for letter in "ABCDE"]
    concepts = ["parachute", "kite", "church", "boat", "van gogh"]
    for method in methods:
        for concept in concepts:
            for seed in (0, 1):
                erasure(tmp_path / "runs", method, concept, seed)
    page = write_report([tmp_path / "runs"], tmp_path / "report.html")
    text = unescape(page.read_text())
    assert "<title>Erasing 5 concepts: 5 methods, 50 erasures</title>" in text
    heads = re.findall(r'<h2 class="story" id="s\d+-head">(.*?)</h2>', text)
    assert len(set(heads)) == 50
    assert "Method A erased kite<small>seed 1</small>" in heads
    (contents,) = re.findall(r"<nav.*?</nav>", text, re.S)
    assert re.findall(r"<dt>(.*?)</dt>", contents) == sorted(concepts)
    links = re.findall(r'href="#(s\d+)"', contents)
    assert sorted(links) == sorted(re.findall(r'<section id="(s\d+)"', text))
    assert len(bare(page)) < 2_000_000


def test_many_concepts_are_counted_where_a_line_does_not_hold_them(
    runs: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(runs, tmp_path / "runs")
    record = json.loads((root / "esd-parachute-2" / "run.json").read_text())
    names = ["parachute", "kite", "church", "boat"]
    record |= {"concepts": [{"name": n, "kind": "object"} for n in names], "concept": None}
    record |= {"format": 2}
    (root / "esd-parachute-2" / "run.json").write_text(json.dumps(record))
    text = write_report([root / "esd-parachute-2"], tmp_path / "report.html").read_text()
    assert "<title>ESD erased 4 concepts" in text
    assert "<dt>Concepts</dt><dd>parachute, kite, church, boat</dd>" in text


def test_recovery_alone_brings_its_subject_and_original(runs: Path, tmp_path: Path) -> None:
    text = write_report([runs / "memora-0"], tmp_path / "report.html").read_text()
    assert "<title>ESD erased parachute, and MemoRa brought it back</title>" in text
    assert "unedited model" in text


def test_notes_stand_with_their_intervals_and_mark_what_happened(tmp_path: Path) -> None:
    esd = write_record(tmp_path / "esd-1", "erase", "ESD")
    write_pictures(esd, {"parachute": "balloon"}, "parachute")
    points = {"accuracy alone (code)": 2, "CLIP alone (code)": None}
    rows = [{"curriculum": i, "accuracy": i / 4, "accuracy, 95 %": [0.0, 0.5]} for i in range(3)]
    rows[2] |= {"CLIP cosine": 0.25, "CLIP cosine, 95 %": [0.125, 0.5], "of": EVIL}
    noted = {
        "thresholds": {"accuracy": 0.3},
        "revival point, in curricula": points,
        "curricula": rows,
        "pictures": {"n": 3, "of": ["kite", "owl"]},
        "nothing": {},
    }
    for name, fields in (("on-esd", {"subject": esd.name}), ("alone", {"subject": None})):
        run = write_record(tmp_path / name, "recover", "Illusion", notes=noted, **fields)
        write_pictures(run, {}, "parachute")
    text = write_report([tmp_path], tmp_path / "report.html").read_text()
    told = text[text.index("What the recoveries noted") : text.index(">How it was made</h2>")]
    assert told.count("<details open>") == 1, "a control's notes are folded"
    (row, _) = re.findall(r'<tr class="marked">.*?</tr>', told, re.S)
    (page, plain) = (re.sub(r"<[^>]*>", "", part).translate(SPACES) for part in (told, row))
    for word in ("50 %[0, 50]", "0.25[0.125, 0.5]", "2revival point: accuracy alone (code)"):
        assert word in plain
    for word in ("accuracy 30 %", "CLIP alone (code) never", "n 3 · of kite, owl"):
        assert word in page
    assert "nothing" not in page
    assert EVIL not in told
    assert "&lt;script&gt;" in told


@pytest.mark.parametrize("kind", ["erase", "recover", "original", "distil"])
def test_missing_parts_are_left_out(tmp_path: Path, kind: str) -> None:
    """A run whose record says next to nothing and whose siblings are gone still makes a page."""
    folder = tmp_path / "bare"
    write_pictures(folder, {}, "parachute")
    (folder / "scores.jsonl").unlink()
    concept = None if kind == "original" else {"name": "parachute", "kind": "object"}
    lost = {"original": "gone", "subject": "gone", "concept": concept}
    (folder / "run.json").write_text(json.dumps({"format": 1, "kind": kind} | lost))
    text = write_report([folder], tmp_path / "report.html").read_text()
    assert len(text) < 1_000_000  # hardly more than its pictures
    assert text.count('src="data:image/webp') >= 8


def test_bad_input_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(PalimpsestError, match="no run lies here"):
        write_report([tmp_path / "nowhere"], out)
    empty = write_record(tmp_path / "empty", "erase", "ESD")
    with pytest.raises(PalimpsestError, match="holds no pictures"):
        write_report([empty], out)
    half = write_record(tmp_path / "half", "clip", "SLUG", status="running")
    with pytest.raises(PalimpsestError, match="no numbers yet; let it finish"):
        write_report([half], out)
    torn = shutil.copytree(runs / "original-1", tmp_path / "torn")
    (torn / "images" / "0000.png").write_bytes(b"not a picture")
    with pytest.raises(PalimpsestError, match="cannot be read as a picture"):
        write_report([torn], out)
    (tmp_path / "file").write_text("")
    with pytest.raises(PalimpsestError, match="cannot be written"):
        write_report([runs / "original-1"], tmp_path / "file" / "report.html")
    assert not out.exists()


@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_works_in_a_browser(browser: Any, page: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900}
    view = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    faults: list[str] = []
    fetched: list[str] = []
    view.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on("request", lambda request: fetched.append(request.url))
    view.goto(page.as_uri())
    fits = "document.documentElement.scrollWidth <= innerWidth"
    broken = "[...document.images].filter(i => i.src && !(i.complete && i.naturalWidth)).length"
    assert view.evaluate(fits)
    assert view.evaluate("document.images.length") >= 54
    view.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert view.evaluate("[...document.images].some(i => !i.complete || !i.src)")
    look_through(view)
    view.wait_for_function("[...document.images].every(i => i.src && i.complete)")
    assert view.evaluate(broken) == 0
    assert view.evaluate(fits)
    hover_ends_of_curve(view)
    assert view.title() == "ESD erased parachute, and MemoRa brought it back"
    assert faults == []
    assert [u for u in fetched if not u.startswith("data:")] == [page.as_uri()]
    view.close()


def look_through(view: Any) -> None:
    """Scroll from the top to the bottom, a screen at a time."""
    for top in range(0, view.evaluate("document.documentElement.scrollHeight"), 900):
        view.evaluate("top => scrollTo({ top, behavior: 'instant' })", top)
        settle(view)


def settle(view: Any) -> None:
    """Wait until what was scrolled has been told."""
    view.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def hover_ends_of_curve(view: Any) -> None:
    """The last point of the first recovery, 26 of 48, must tell its value, step and n."""
    point = view.locator(".plane .mark.hue-2").nth(3)
    point.scroll_into_view_if_needed()
    settle(view)
    box = point.bounding_box()
    view.mouse.move(box["x"] + box["width"] / 2 + 9, box["y"] - 9)
    view.wait_for_selector(".tip:not([hidden])")
    label = view.locator(".tip").text_content().translate(SPACES)
    assert re.fullmatch(
        r"MemoRa, published pictures, on ESD\n54 % \[40, 67\]\nstep 60 · n = 48", label
    )
    tip = view.locator(".tip").bounding_box()
    assert tip["x"] >= 0
    assert tip["x"] + tip["width"] <= view.viewport_size["width"]
    view.keyboard.press("Escape")
    assert view.locator(".tip").is_hidden()


LOOKS = [(390, "dark"), *((w, s) for w in (1280, 820, 390) for s in ("light", "dark"))]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        LOOKS[0],
        *(pytest.param(*look, marks=pytest.mark.slow) for look in LOOKS if look != LOOKS[0]),
    ],
)
def test_page_is_sound_for_keyboards_and_screen_readers(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    """What axe-core finds wrong: nothing, with all folds open."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view.goto(page.as_uri())
    view.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    view.evaluate(axe)
    found = view.evaluate("axe.run().then(result => result.violations)")
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
    view.close()
