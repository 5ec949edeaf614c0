"""The site of many runs: what it says, where its pages lie, and that a person can use it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from campaign import Campaign
from PIL import Image

from palimpsest.cli import main
from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Number
from palimpsest.report.arrange import arrange, expand
from palimpsest.report.load import read, seen_by
from palimpsest.report.site import write_site
from palimpsest.report.site.board import Board, mean
from palimpsest.report.site.kept import kept
from palimpsest.report.site.pictures import Pictures, compressed
from palimpsest.runs import groups
from palimpsest.runs.groups import Compared

EVIL = '<script>document.title="owned"</script>'
ODD = "esd parachute #1 50%"
"""A folder's name that means something else in an address, unless it is quoted."""
SPACES = {0x202F: " ", 0xA0: " "}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, an object with two seeds and a style with one, and a recovery of each."""
    campaign = Campaign(tmp_path_factory.mktemp("site") / "runs", pictures=1)
    campaign.fill(["ESD", "UCE"], [("parachute", "object")], 2, ["MemoRa"])
    style = {"name": "van gogh", "kind": "style"}
    links = {"original": "original-1"}
    for method in ("ESD", "UCE"):
        campaign.run(f"{method.lower()}-style", "erase", method, style, shows=0.2, **links)
    evil = {"name": EVIL, "kind": "object"}
    campaign.run(ODD, "erase", "<i>ESD", evil, command=EVIL, **links)
    return campaign.root


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site([runs], tmp_path_factory.mktemp("out") / "site").parent


def pages(site: Path) -> list[Path]:
    return [site / "index.html", *sorted((site / "runs").glob("*/index.html"))]


def text(page: Path) -> str:
    """A page's words without their markup."""
    inside = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)
    plain = unescape(re.sub(r"<[^>]*>", " ", inside)).translate(SPACES)
    return re.sub(r"\s+", " ", plain)


class Links(HTMLParser):
    """A page's addresses and ids, and the texts of its scripts that hold data."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found, self.ids, self.data, self.inside = [], [], [], False
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.found += [v for k in ("href", "src") if (v := own.get(k))]
        self.ids += [v for v in [own.get("id")] if v]
        self.inside = own.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.data.append(json.loads(data))
        self.inside = False


# --- where things lie ---


def test_every_run_has_its_page_under_its_own_name(runs: Path, site: Path) -> None:
    assert {page.parent.name for page in pages(site)[1:]} == {run.name for run in runs.iterdir()}


def test_every_link_leads_to_a_file(site: Path) -> None:
    count = 0
    for page in pages(site):
        links = Links(page)
        assert len(links.ids) == len(set(links.ids)), page
        for link in links.found:
            if link.startswith("data:"):
                continue
            assert not re.match(r"\w+:|//", link), "nothing comes from elsewhere"
            place, _, anchor = link.partition("#")
            target = page.parent / unquote(place) if place else page
            assert target.is_file(), (page, link)
            assert not anchor or anchor in links.ids, (page, link)
            count += 1
        for block in links.data:
            rows = block["rows"] if isinstance(block, dict) and "columns" in block else []
            for *_, cells in rows:
                names = [c[0] if "." in c[0] else f"{c[0]}.webp" for c in cells if c]
                assert all((site / "pictures" / name).is_file() for name in names)
    assert count > 300


def test_addresses_and_texts_do_not_depend_on_other_runs(
    runs: Path, site: Path, tmp_path: Path
) -> None:
    few = [runs / name for name in ("original-1", "esd-style")]
    alone = write_site(few, tmp_path / "alone").parent
    assert (alone / "runs/esd-style/index.html").is_file()
    for own in pages(alone)[1:]:
        theirs = site / own.relative_to(alone)
        assert sorted(Links(own).data, key=str) == sorted(Links(theirs).data, key=str)


def test_what_a_judge_says_of_a_shared_run_is_read_once(runs: Path) -> None:
    shared, record = read(runs / "original-1"), read(runs / "esd-style").record
    other = replace(record, judge=replace(record.judge, name="another judge"))
    seen = seen_by(shared, other)
    assert seen_by(shared, replace(other, title="by another method")) is seen
    assert seen.pictures == seen_by(read(runs / "original-1"), other).pictures
    assert seen_by(shared, replace(record, judge=None)) is not seen


# --- what it says ---


def test_a_line_is_over_its_seeds_and_says_how_many(runs: Path, site: Path) -> None:
    board = Board({m.run.name: m for m in map(read, expand([runs]))})
    by_concept = {(x.method, x.concepts): x for x in board.lines}
    two, one = by_concept["ESD", ("parachute",)], by_concept["ESD", ("van gogh",)]
    assert (two.seeds, one.seeds) == (2, 1)
    records = [json.loads((runs / f"esd-parachute-{i}/run.json").read_text()) for i in (0, 1)]
    shares = [r["numbers"][0]["value"] for r in records]
    assert two.numbers["UA"].value == pytest.approx(sum(shares) / 2)
    both = next(m for m in board.methods if (m.method, m.scope) == ("ESD", ("", "")))
    assert both.seeds == 1, "a method rests on no more than its weakest concept"
    assert both.numbers["UA"].value == pytest.approx(
        (two.numbers["UA"].value + one.numbers["UA"].value) / 2
    )
    assert "one seed" in text(site / "index.html")


def test_what_was_done_twice_about_a_concept_is_no_mean_of_concepts(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, pictures=1)
    concept = {"name": "parachute", "kind": "object"}
    for anchor, shows in (("balloon", 0.0), ("kite", 1.0)):
        own = {"concept": concept | {"anchor": anchor}, "shows": shows}
        campaign.run(f"{anchor}-uce", "erase", "UCE", **own)
    more = {"name": "van gogh", "kind": "style"}
    campaign.run("style", "erase", "UCE", more, shows=0.0)
    board = Board({m.run.name: m for m in map(read, expand([tmp_path]))})
    found = [m for m in board.methods if m.scope == ("", "")]
    assert [(m.note, m.concepts) for m in found] == [
        ("", ("parachute", "van gogh")),
        ("variant 2", ("parachute",)),
    ]
    assert found[1].numbers["UA"].value == pytest.approx(0.0)


def test_the_mean_over_concepts_adds_squares_of_their_ends() -> None:
    """0.5 [0.4, 0.7] and 1 [0.8, 1]: √(0.1² + 0.2²)/2 = 0.112 below, √(0.2² + 0)/2 = 0.1 above."""
    found = mean([Number("UA", 0.5, 0.4, 0.7, 10), Number("UA", 1.0, 0.8, 1.0, 30)])
    assert found.value == pytest.approx(0.75)
    assert found.low == pytest.approx(0.75 - 0.05**0.5 / 2)
    assert found.high == pytest.approx(0.85)
    assert found.n == 40


def test_the_matrix_has_every_recovery_before_and_after(runs: Path) -> None:
    board = Board({m.run.name: m for m in map(read, expand([runs]))})
    (matrix,) = board.matrices()
    assert [name for name, _ in matrix.columns] == ["MemoRa"]
    rows = {line.method: cells for line, cells in matrix.rows if line.scope == ("", "")}
    before, after = rows["ESD"]
    assert set(after.runs) == {f"MemoRa-parachute-on-esd-parachute-{i}" for i in (0, 1)}
    shown = [read(runs / run).shown(read(runs / run).target).value for run in after.runs]
    assert after.number
    assert after.number.value == pytest.approx(sum(shown) / 2)
    assert before.number
    assert 0 <= before.number.value <= 1
    assert dict.fromkeys((name, scope[0]) for name, scope, _ in matrix.others).keys() == {
        (name, kind)
        for name in ("Gold, which never knew it", "The unedited model")
        for kind in ("", "object")
    }


def test_what_is_kept_of_others_is_what_the_judge_names(runs: Path) -> None:
    (section,) = arrange([runs / "uce-parachute-0"])
    found = {k.name: k for k in kept(section.erasure, section.original)}
    assert "parachute" not in found
    said = [json.loads(x) for x in (runs / "uce-parachute-0/scores.jsonl").read_text().splitlines()]
    asked = [
        json.loads(x) for x in (runs / "uce-parachute-0/images.jsonl").read_text().splitlines()
    ]
    hits = [
        s["labels"]["object"] == "owl"
        for s, a in zip(said, asked, strict=True)
        if a["asks"]["object"] == "owl"
    ]
    assert found["owl"].share.value == pytest.approx(sum(hits) / len(hits))
    assert found["owl"].near
    assert not found["sketch"].near
    assert found["sketch"].share.n == 5, "prompts of the erased object are no part of it"


def test_text_of_people_is_never_markup(site: Path) -> None:
    for page in (site / "index.html", site / "runs" / ODD / "index.html"):
        assert EVIL not in page.read_text()
        assert "<i>ESD" not in page.read_text()
    assert f"<i>ESD and {EVIL}" in text(site / "runs" / ODD / "index.html")


def test_a_page_says_how_to_repeat_the_run_and_what_belongs_to_it(site: Path) -> None:
    page = site / "runs/uce-parachute-0/index.html"
    assert "palimpsest erase uce" in text(page)
    links = {unquote(link) for link in Links(page).found}
    kin = ("original-1", "gold-parachute", "MemoRa-parachute-on-uce-parachute-0")
    assert {f"../{name}/index.html" for name in kin} <= links


# --- pictures ---


def test_pictures_lie_there_once_and_look_alike(runs: Path, site: Path) -> None:
    there = sorted((site / "pictures").iterdir())
    shown = {p.read_bytes() for p in runs.glob("*/images/*.png")}
    assert 0 < len(there) <= len(shown) < len(list(runs.glob("*/images/*.png"))) / 3
    for name, ending, most in (("kite-sketch-0", "webp", 2), ("church-mosaic-0", "png", 0)):
        data = (runs / f"original-1/images/{name}.png").read_bytes()
        found, small = compressed(data)
        assert found == ending
        assert len(small) < len(data)
        ours, theirs = (
            np.asarray(Image.open(BytesIO(each)).convert("RGB"), float) for each in (small, data)
        )
        assert np.abs(ours - theirs).mean() <= most


def test_half_a_picture_is_made_again(runs: Path, tmp_path: Path) -> None:
    file = next(runs.glob("original-1/images/*.png"))
    name = Pictures(tmp_path / "pictures").add(file)
    whole = (tmp_path / "pictures" / name).read_bytes()
    (tmp_path / "pictures" / name).write_bytes(b"")
    assert Pictures(tmp_path / "pictures").add(file) == name
    assert (tmp_path / "pictures" / name).read_bytes() == whole


def test_fifty_runs_are_small_before_their_pictures(site: Path) -> None:
    sizes = [page.stat().st_size for page in pages(site)]
    assert sum(sizes[1:]) / len(sizes[1:]) * 50 + sizes[0] < 5_000_000
    assert sum((site / f"site.{kind}").stat().st_size for kind in ("css", "js")) < 60_000


# --- written again ---


@pytest.fixture
def few(runs: Path, tmp_path: Path) -> Path:
    """A folder of its own with three of the runs."""
    for name in ("original-1", "esd-style", "uce-style"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def stamps(site: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in site.rglob("*") if path.is_file()]
    return {str(p.relative_to(site)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in found}


def test_what_has_not_changed_is_not_written_and_what_is_gone_goes(
    few: Path, tmp_path: Path
) -> None:
    site = write_site([few], tmp_path / "site").parent
    before = stamps(site)
    write_site([few], site)
    assert stamps(site) == before
    shutil.rmtree(few / "uce-style")
    (site / "runs/uce-style/own.txt").write_text("mine")
    (site / "CNAME").write_text("mine")
    write_site([few], site)
    after = stamps(site)
    assert "runs/uce-style/index.html" not in after
    assert {"runs/uce-style/own.txt", "CNAME"} <= after.keys(), "what is not ours stays"
    assert len(list((site / "pictures").iterdir())) < sum("pictures" in name for name in before)
    assert after["runs/original-1/index.html"] != before["runs/original-1/index.html"], "its kin"


GROUPS = {"tuned": (("parachute",),), "unseen": (("Van Gogh",), ("owl", "rabbit"))}


@pytest.fixture
def grouped(runs: Path, tmp_path: Path) -> Path:
    """The site of the runs as a campaign's with two groups of concepts."""
    shutil.copytree(runs, tmp_path / "runs")
    called = {"uce-parachute-1": "In <i>closed form"}
    Compared("Two <b>sorts", "Some were tuned on.", GROUPS, called).write(tmp_path / "runs")
    return write_site([tmp_path / "runs"], tmp_path / "site").parent


def test_a_campaign_names_the_site_and_its_groups(grouped: Path) -> None:
    index = text(grouped / "index.html")
    assert "Two <b>sorts" in index
    assert "Some were tuned on." in index
    assert "Unseen concepts Van Gogh, owl + rabbit" in index
    assert "Erasure, unseen concept" in text(grouped / "runs/esd-style/index.html")
    page = text(grouped / "runs/uce-parachute-1/index.html")
    assert "Erasure, tuned concept" in page
    assert "In <i>closed form" in index
    assert "In <i>closed form" in page


def test_what_a_campaign_says_is_checked_and_groups_add_up(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder, title in zip(folders, ("One", "Other"), strict=True):
        folder.mkdir()
        Compared(title, "", {"tuned": ((title.lower(),),)}, {title: "ESD-u"}).write(folder)
    both = groups.read([*folders, folders[0], tmp_path])
    called = {"One": "ESD-u", "Other": "ESD-u"}
    assert both == Compared("", "", {"tuned": (("one",), ("other",))}, called)
    assert groups.read(folders[:1]).title == "One"
    assert both.group(["ONE"]) == "tuned"
    assert both.group(["one", "other"]) == ""
    whole = '{"title": "", "about": "", "groups": {}, "called": 1}'
    for broken in ("[]", "{}", whole, whole.replace("{}", "3").replace("1", "{}")):
        (folders[1] / groups.NAME).write_text(broken)
        with pytest.raises(PalimpsestError, match=r"campaign\.json"):
            groups.read(folders)


def test_pairs_are_computed_once(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = write_site([few], tmp_path / "site").parent
    (kept,) = json.loads((site / "paired.json").read_text()).values()
    assert kept["methods"] == ["ESD", "UCE"]
    assert [number for number, _ in kept["numbers"]] == ["UA", "IRA", "CRA"]
    monkeypatch.setattr("palimpsest.report.site.pairs.compare", lambda runs: pytest.fail("again"))
    write_site([few], site)
    scores = few / "uce-style/scores.jsonl"
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    rows[0]["labels"]["object"] = "owl"
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(pytest.fail.Exception, match="again"):
        write_site([few], site)


def test_other_folders_are_refused_untouched(few: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(PalimpsestError, match="no site of Palimpsest; name a new or an empty"):
        write_site([few], other)
    with pytest.raises(PalimpsestError, match="is a file; name a folder"):
        write_site([few], other / "thesis.tex")
    (other / "site.json").write_text('{"palimpsest": "0.1.0"}')
    (other / "pictures").symlink_to(tmp_path)
    with pytest.raises(PalimpsestError, match="a link, which no site has"):
        write_site([few], other)
    assert sorted(p.name for p in other.iterdir()) == ["pictures", "site.json", "thesis.tex"]


def test_a_broken_picture_leaves_the_old_site(few: Path, tmp_path: Path) -> None:
    site = write_site([few], tmp_path / "site").parent
    before = stamps(site)
    broken = next((few / "esd-style/images").iterdir())
    broken.write_bytes(b"no picture")
    with pytest.raises(PalimpsestError, match=r"no picture .*; run `esd-style` again"):
        write_site([few], site)
    after = stamps(site)
    assert before.keys() == after.keys()
    assert after["index.html"] == before["index.html"]


def test_the_command_writes_it(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    site = tmp_path / "site"
    assert main(["report", str(few), "--site", str(site)]) == 0
    assert str(site / "index.html") in capsys.readouterr().out.replace("\n", "")
    assert not (few / "report.html").exists(), "one page is not asked for"
    assert main(["report", str(few), "--site", str(few)]) == 2
    assert "no site of Palimpsest" in capsys.readouterr().err


# --- in a browser ---


@pytest.fixture
def view(browser: Any) -> Iterator[Any]:
    """A page whose faults are collected, and fail the test in the end."""
    faults: list[str] = []
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    view.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    view.on("pageerror", lambda error: faults.append(str(error)))
    yield view
    assert faults == []
    view.close()


def shown(view: Any, board: str) -> list[str]:
    """What the first cells of a table's visible lines say."""
    rows = view.locator(f'table[data-sort="{board}"] tbody tr:visible th').all_inner_texts()
    return [row.split("\n")[0] for row in rows]


@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_their_screen(view: Any, site: Path, width: int, scheme: str) -> None:
    view.set_viewport_size({"width": width, "height": 900})
    view.emulate_media(color_scheme=scheme)
    for page in (site / "index.html", *(site / "runs").glob("*/index.html")):
        if page.parent.name in ("runs", "site", "uce-parachute-0", ODD, "original-1"):
            view.goto(page.as_uri())
            assert view.evaluate("document.documentElement.dataset.ready") == "yes"
            assert view.evaluate("document.documentElement.scrollWidth <= innerWidth"), page
    view.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark == (scheme == "dark")


def test_the_leaderboard_sorts_filters_and_remembers(view: Any, site: Path) -> None:
    view.goto((site / "index.html").as_uri())
    assert view.locator('[data-board="method"]').is_visible()
    head = view.locator('[data-board="method"] th', has_text="Forgets")
    head.locator("button").focus()
    view.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    downwards = shown(view, "method")
    view.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    *known, last = downwards
    assert last == "<i>ESD", "what has no such number is last in either order"
    assert shown(view, "method") == [*known[::-1], last]
    view.get_by_role("button", name="Methods and concepts").click()
    assert len(shown(view, "concept")) == 5
    view.get_by_label("Kind of concept").select_option("style")
    assert sorted(shown(view, "concept")) == ["ESD", "UCE"]
    view.get_by_label("Search").fill("uce")
    assert shown(view, "concept") == ["UCE"]
    assert view.locator("#count").inner_text() == "1 row"
    address = view.url
    view.goto("about:blank")
    view.goto(address)
    assert shown(view, "concept") == ["UCE"], "the address says what is shown"
    view.get_by_role("button", name="Show all").click()
    assert len(shown(view, "concept")) == 5


def test_groups_of_concepts_have_a_column_each(view: Any, grouped: Path) -> None:
    view.goto((grouped / "index.html").as_uri())
    heads = view.locator('[data-board="method"] thead th:visible')
    told = [head.replace("\n", " ") for head in heads.all_inner_texts() if "UA" in head]
    assert told == ["Forgets UA ↑, tuned", "Forgets UA ↑, unseen"]
    both = view.locator('[data-board="method"] tbody tr:visible', has_text="UCE")
    assert both.count() == 1
    tuned, unseen = both.locator("td[data-v][data-column]").all_inner_texts()[:2]
    assert tuned.split("\n")[0] != unseen.split("\n")[0]
    view.locator("[data-filter=group]").select_option("unseen")
    assert not [head for head in heads.all_inner_texts() if "tuned" in head]
    charts = view.locator("#tradeoff h3:visible").all_inner_texts()
    assert len(charts) == 1
    assert charts[0].endswith(": unseen")
    view.get_by_role("button", name="Methods and concepts").click()
    assert sorted(shown(view, "concept")) == ["ESD", "UCE"]


def test_pairs_of_methods_can_be_turned_round(view: Any, site: Path) -> None:
    def difference() -> str:
        cell = view.locator("#paired-rows tr", has_text=other).locator("td").first
        return cell.inner_text().split("\n")[0]

    view.goto((site / "index.html").as_uri())
    own, other = view.locator("#paired-with option").all_inner_texts()[:2]
    ours = difference()
    assert re.fullmatch(r"[+−±]\d+ points", ours)
    view.locator("#paired-with").select_option("1")
    other = own
    assert difference() == ours.translate(str.maketrans("+−", "−+"))
    assert "paired-with=1" in view.url


def test_the_index_shows_what_methods_draw_instead(site: Path) -> None:
    inside = re.search(
        r'<section id="looks">(.*?)</section>', (site / "index.html").read_text(), re.S
    )
    assert inside
    links = [unquote(link) for link in re.findall(r'<a href="(.*?)"', inside[1])]
    columns = ["original-1", "esd-parachute-0", "uce-parachute-0"]
    assert links[:3] == [f"runs/{name}/index.html" for name in columns], "the first seed of each"
    assert links.count("runs/uce-style/index.html") == 3


def test_pictures_load_when_they_are_looked_at(view: Any, site: Path) -> None:
    asked: list[str] = []
    view.on("request", lambda request: asked.append(request.url))
    view.goto((site / "runs/original-1/index.html").as_uri())
    view.wait_for_load_state("networkidle")
    every = view.locator(".row img").count()
    folded = view.locator("details[data-fold] img").count()
    assert folded == 0
    assert all(url.startswith("file:") for url in asked)
    view.locator("details[data-fold] summary").first.click()
    view.locator("details[data-fold] img").first.wait_for()
    assert view.locator(".row img").count() > every
    view.wait_for_function(
        "[...document.images].some((i) => i.closest('details') && i.naturalWidth)"
    )


def test_two_pictures_are_compared_and_enlarged_by_keyboard(view: Any, site: Path) -> None:
    view.goto((site / "runs/MemoRa-parachute-on-uce-parachute-0/index.html").as_uri())
    opener = view.locator(".cell button").nth(1)
    opener.focus()
    view.keyboard.press("Enter")
    viewer, title = view.locator("#viewer"), view.locator("#viewer h2")
    assert viewer.is_visible()
    sides = [s.evaluate("e => e.selectedOptions[0].text") for s in viewer.locator("select").all()]
    assert sides[0].startswith("original")
    assert sides[1].startswith("erased")
    sources = viewer.locator(".layers img").evaluate_all("all => all.map((i) => i.src)")
    assert len(set(sources)) == 2 or "erased" in sides[1]
    at = "getComputedStyle(document.querySelector('#viewer .layers')).getPropertyValue('--at')"
    view.keyboard.press("ArrowRight")
    assert view.evaluate(at) == "55%"
    first = title.inner_text()
    view.keyboard.press("ArrowDown")
    assert title.inner_text() != first
    view.keyboard.press("ArrowUp")
    assert title.inner_text() == first
    view.keyboard.press("+")
    assert viewer.locator("output").inner_text() == "2×"
    wide = "(q) => document.querySelector(q).getBoundingClientRect().width"
    ratio = view.evaluate(wide, "#viewer .layers") / view.evaluate(wide, "#viewer .stage")
    assert ratio == pytest.approx(2, abs=0.1)
    view.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert opener.evaluate("e => e === document.activeElement")


def test_light_and_dark_are_kept(view: Any, site: Path) -> None:
    view.goto((site / "index.html").as_uri())
    view.get_by_role("button", name="Light or dark").click()
    view.goto((site / "runs/uce-style/index.html").as_uri())
    assert view.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_pages_are_sound_for_keyboards_and_screen_readers(
    view: Any, site: Path, scheme: str
) -> None:
    """What axe-core finds wrong: nothing, with all folds open, and in the viewer."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    some = pages(site)
    names = ("site", "MemoRa-parachute-on-uce-parachute-0")
    if scheme == "light":
        some = [page for page in some if page.parent.name in names]
    view.emulate_media(color_scheme=scheme)
    for page in some:
        view.goto(page.as_uri())
        view.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        view.evaluate(axe)
        check(view)
        if (cell := view.locator(".cell button")).count():
            cell.first.click()
            check(view)


def check(view: Any) -> None:
    found = view.evaluate("axe.run({preload: false})")
    said = [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"]]
    assert said == [], view.url
    assert len(found["passes"]) > 20
