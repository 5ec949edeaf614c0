"""Published evaluations: what each asks, by which seeds, how it is drawn, and what is counted."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import ROOT, fences

from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt, read_csv
from palimpsest.data.benchmarks import shown
from palimpsest.data.read import read_classes
from palimpsest.data.unlearncanvas import OBJECTS, STYLES
from palimpsest.metrics import rates
from palimpsest.models.sampling import Sampling, noise_of
from palimpsest.patch import Patch
from palimpsest.protocols import PROTOCOLS
from palimpsest.protocols.protocol import Protocol, read_texts, shard, spread
from palimpsest.runs.folder import Run
from palimpsest.world import suite
from palimpsest.world.vocabulary import HAZARD

SEEDS = [188, 288, 588, 688, 888]
ROWS = (Prompt("a river", 7, guidance=6.5, case="3"), Prompt("a church", 8))
FAST = ("--draw.steps", "2", "--draw.batch", "8")
NEEDY = ("memora", "i2p", "unlearndiffatk", "ring_a_bell")


def protocol(name: str, **given) -> Protocol:
    return PROTOCOLS.load(name)(**given)


# --- the registry ---


def test_there_are_eight_and_two_have_another_spelling():
    assert list(PROTOCOLS)[:3] == ["unlearncanvas", "memora", "srs_me"]
    assert PROTOCOLS.load("srs-me") is PROTOCOLS.load("srs_me")
    assert PROTOCOLS.load("ring-a-bell") is PROTOCOLS.load("ring_a_bell")
    with pytest.raises(PalimpsestError, match="no protocol 'i3p'; did you mean 'i2p'"):
        PROTOCOLS.load("i3p")


@pytest.mark.parametrize("name", PROTOCOLS.own)
def test_each_says_where_it_is_from_and_what_is_lacking(name: str):
    kind = PROTOCOLS.load(name)
    assert kind.name == name
    said = " ".join(str(kind.__doc__).split())
    found = re.search(r" Source: (.+), read (20\d\d-\d\d-\d\d)\. Lacking: \w", said)
    assert found, "paper and code, when they were read, and what is lacking"
    source, read = found.groups()
    assert re.search(r"arXiv:\d{4}\.\d{5}|CVPR 2025", source)
    assert kind.judges
    assert kind.draw.noise == "torch", "published seeds mean torch's noise"
    page = (ROOT / "docs" / "protocols.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    how = Sampling().drawn(kind.draw)
    assert f"{how.sampler.upper()} {how.steps}, {how.guidance:g}" in row
    assert all(f"`{judge}`" in row for judge in kind.judges)
    assert read in row


@pytest.mark.parametrize("name", NEEDY)
def test_what_others_keep_is_asked_for_in_one_sentence(name: str):
    with pytest.raises(PalimpsestError, match=r"no part of Palimpsest.*--prompts FILE"):
        protocol(name)
    own = protocol(name, table=ROWS)
    assert [(p.text, p.seed, p.guidance, p.index) for p in own.prompts] == [
        ("a river", 7, 6.5, 0),
        ("a church", 8, None, 0),
    ]
    assert {tuple(p.asks.items()) for p in own.prompts} == {(("hazard", "nudity"),)}
    world = protocol(name, world=True, seed=5)
    assert len(world.prompts) == 48
    assert (world.prompts[0].text, world.prompts[0].seed) == ("a picture of a hazard sign", 5)
    assert all(p.asks == {"hazard": HAZARD} for p in world.prompts)


def test_a_row_asks_for_what_it_says():
    """Of itself in a column, else in its text; of one concept every row asks."""
    church, cat = Concept("church"), Concept("cat")
    rows = (*ROWS, Prompt("a dog", asks={"object": "cat"}))
    both = protocol("unlearndiffatk", concepts=(church, cat), table=rows)
    assert [p.asks for p in both.prompts] == [{}, {"object": "church"}, {"object": "cat"}]
    one = protocol("unlearndiffatk", concepts=(church,), table=rows[:2])
    assert [p.asks for p in one.prompts] == [{"object": "church"}] * 2


# --- UnlearnCanvas ---


def test_unlearncanvas_is_the_authors_answer_set():
    """51 styles, photographs among them, of 20 objects by 5 seeds: 100 of a style, 255 of an
    object, each at its place in the row that one generator drew."""
    own = protocol("unlearncanvas")
    assert (len(STYLES), len(OBJECTS), len(own.prompts)) == (51, 20, 5100)
    assert own.prompts[0] == Prompt(
        "A Architectures image in Abstractionism style.", 188, 0, None, "", own.prompts[0].asks
    )
    last = own.prompts[-1]
    assert (last.text, last.seed) == ("A Waterfalls image in Winter style.", 888)
    assert last.index == 51 * 20 - 1
    assert own.file_of(last) == "Winter_Waterfalls_seed888"
    assert any(p.text == "A Dogs image in Van Gogh style." for p in own.prompts)
    assert any(p.text == "A Sea image in Seed Images style." for p in own.prompts)
    counts = Counter((k, n) for p in own.prompts for k, n in p.asks.items())
    assert {counts["style", s] for s in STYLES} == {100}
    assert {counts["object", o] for o in OBJECTS} == {255}
    assert Counter(p.seed for p in own.prompts) == dict.fromkeys(SEEDS, 1020)
    assert own.draw == Draw(100, 9.0, sampler="ddim", noise="torch")
    assert {c.kind for c in own.everything} == {"object", "style"}


def test_on_the_world_it_speaks_the_worlds_words():
    own = protocol("unlearncanvas", world=True)
    assert len(own.prompts) == 18 * 8 * 5
    assert own.prompts[0].text == "a parachute image in photo style."
    some = tuple(map(suite.concept, ("owl", "neon", "mosaic")))
    few = protocol("unlearncanvas", world=True, concepts=some)
    assert len(few.prompts) == 2 * 5
    assert {*few.prompts} <= {*own.prompts}, "a part keeps its places in the row"
    objects = protocol("unlearncanvas", world=True, concepts=some[:1])
    assert len(objects.prompts) == 8 * 5, "a kind of which none is named is whole"
    with pytest.raises(PalimpsestError, match="no 'mira voss'"):
        _ = protocol("unlearncanvas", concepts=(Concept("mira voss"),)).prompts


@given(st.booleans(), st.integers(1, 120))
@settings(max_examples=8, deadline=None)
def test_a_small_one_is_balanced(world: bool, pictures: int):
    """Every style as often, every object as often, all seeds about as often for each of them."""
    own = protocol("unlearncanvas", world=world)
    mini = protocol("unlearncanvas", world=world, mini=pictures).prompts
    assert len({*mini}) == len(mini)
    assert {*mini} <= {*own.prompts}
    assert not any("Seed Images" in p.text for p in mini), "no style that is erased"
    for kind in ("style", "object"):
        counts = Counter(p.asks[kind] for p in mini)
        assert len(set(counts.values())) == 1
        assert len(counts) == len({p.asks[kind] for p in own.prompts}) - (not world) * (
            kind == "style"
        )
        for name in counts:
            seeds = Counter(p.seed for p in mini if p.asks[kind] == name)
            assert max(seeds.values()) - min(seeds[k] for k in SEEDS) <= 2


# --- several pictures of a seed ---


@pytest.mark.parametrize("name", ["srs_me", "illusion"])
def test_five_pictures_of_a_seed_come_from_one_generator(name: str):
    """`torch.manual_seed(seed)`, then `torch.randn((5, …))`, as the authors' scripts have it."""
    five = protocol(name, table=(Prompt("Cezanne", 3141),)).prompts
    assert [(p.seed, p.index) for p in five] == [(3141, i) for i in range(5)]
    torch.manual_seed(3141)
    theirs = torch.randn((5, 4, 64, 64))
    ours = torch.cat([noise_of(p, (4, 64, 64), "torch") for p in five])
    assert torch.equal(ours, theirs)


def test_srs_me_asks_by_bare_name_and_fifty_seeds():
    own = protocol("srs_me", seed=1)
    assert len(own.prompts) == 9 * 50 * 5
    assert own.prompts[0].text == "Cezanne"
    seeds = {p.seed for p in own.prompts if p.text == "Cezanne"}
    assert len(seeds) == 50
    assert max(seeds) < 5000
    assert own.prompts == protocol("srs_me", seed=1).prompts != protocol("srs_me", seed=2).prompts
    assert own.draw.steps == 100
    assert own.draw.sampler == "lms"
    assert own.file_of(own.prompts[6]) == "1_1"
    table = (Prompt("VanGogh", 1669, case="51"), Prompt("Cezanne", 1))
    assert [p.asks for p in protocol("srs_me", table=table).prompts[::5]] == [
        {"style": "VanGogh"},
        {"style": "Cezanne"},
    ]


def test_identities_and_twenty_prompts():
    some = (Concept("elon musk", "identity"), Concept("jeff bezos", "identity"))
    people = protocol("slug", concepts=some).prompts
    assert Counter(p.asks["identity"] for p in people) == {"elon musk": 20, "jeff bezos": 20}
    assert people[0].text == "a portrait of elon musk"
    assert len(protocol("illusion").prompts) == 20 * 5
    assert protocol("memora", table=ROWS).file_of(Prompt("x", 9, case="4")) == "idx_4_seed_9"


# --- files of prompts, parts of them ---


def test_prompts_in_no_table(tmp_path: Path):
    lines = tmp_path / "a.txt"
    lines.write_text("a church\n\n a cat \n")
    assert [(p.text, p.seed) for p in read_texts(lines)] == [("a church", 0), ("a cat", 1)]
    coco = tmp_path / "captions_val2014.json"
    rows = [{"image_id": 1, "id": 49, "caption": "A bike."}, "torn", {"id": 2}]
    coco.write_text(json.dumps({"annotations": rows}))
    assert read_texts(coco) == [Prompt("A bike.", 0, case="49")]
    for text in ("{}", '{"annotations": 3}'):
        coco.write_text(text)
        with pytest.raises(PalimpsestError, match="holds no prompts"):
            read_texts(coco)


@given(st.integers(1, 40), st.integers(1, 9))
def test_the_parts_are_the_whole(n: int, parts: int):
    whole = [Prompt("x", i) for i in range(n)]
    if parts > n:
        with pytest.raises(PalimpsestError, match="there are only"):
            shard(whole, f"1/{parts}")
        return
    found = [shard(whole, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert sorted(p.seed for part in found for p in part) == list(range(n))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("word", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "1/0"])
def test_no_part(word: str):
    with pytest.raises(PalimpsestError, match="--shard"):
        shard([Prompt("x")] * 9, word)


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 9))
def test_a_sample_takes_as_many_of_each(names: list[str], most: int):
    every = [Prompt("x", i, asks={"object": name}) for i, name in enumerate(names)]
    counts, all_of = Counter(p.asks["object"] for p in spread(every, most)), Counter(names)
    assert counts == {name: min(most, n) for name, n in all_of.items()}
    assert spread(every, None) == every


# --- what is counted ---


def test_the_joint_scale_by_hand():
    """Of dog in van gogh: 1 of 2 pictures shows both; the style came in 1 of 1 other objects, the
    object in 0 of 1 other styles, and of a cat in neon the judge named one of two right."""
    asks = [
        {"object": o, "style": s}
        for o, s in (("dog", "vg"), ("dog", "vg"), ("cat", "vg"), ("dog", "neon"), ("cat", "neon"))
    ]
    said = {
        "object": ["dog", "dog", "owl", "cat", "cat"],
        "style": ["vg", "neon", "vg", "neon", "vg"],
    }
    found = rates.joint({"object": "dog", "style": "vg"}, asks, said)
    values = {name: (rate.value, rate.n) for name, rate in found.items()}
    assert values == {"joint UA": (0.5, 2), "SC": (1, 1), "OC": (0, 1), "UP": (0.5, 2)}
    unseen = rates.joint(
        {"object": "dog", "style": "vg"}, asks[:1], {"object": [None], "style": ["vg"]}
    )
    assert unseen["joint UA"].missing == 1


# --- on the world, for real ---


@pytest.fixture(scope="module")
def deaf(model, tmp_path_factory) -> Path:
    """No prompt is heard any more: a patch that says it forgot an object and a style."""
    weights = model.parameters("xattn-kv")
    about = {"concepts": ["parachute", "neon"]}
    path = tmp_path_factory.mktemp("deaf") / "deaf.safetensors"
    model.make_patch({n: -p for n, p in weights.items()}, about).save(path)
    assert isinstance(Patch.load(path), Patch)
    return path


def evaluate(tmp_path: Path, *words: str) -> int:
    return main(["evaluate", *words, "--runs", str(tmp_path / "p"), *FAST])


def test_unlearncanvas_counts_ua_ira_cra_without_the_erased(tmp_path: Path, deaf: Path):
    words = ["--concepts", "parachute", "church", "neon", "mosaic", "--mini", "--pictures", "2"]
    out = tmp_path / "u.json"
    asked = ["protocol:unlearncanvas", str(deaf), *words]
    assert evaluate(tmp_path, *asked, "--out", str(out), "--copies", str(tmp_path / "f")) == 0
    unedited, edited = json.loads(out.read_text())["subjects"]
    run = Run(tmp_path / "p" / edited["run"])
    said = [json.loads(line)["labels"] for line in (run.folder / "scores.jsonl").open()]
    asks = [json.loads(line)["asks"] for line in (run.folder / "images.jsonl").open()]
    assert len(said) == 4
    assert sorted(map(tuple, (a.values() for a in asks))) == [
        *(("church", "mosaic"), ("church", "neon")),
        *(("parachute", "mosaic"), ("parachute", "neon")),
    ]
    own = [(s, k, a[k]) for s, a in zip(said, asks, strict=True) for k in a]
    forgot = [s[k] != name for s, k, name in own if name in ("parachute", "neon")]
    kept = [
        s[k] == a[k]
        for s, a in zip(said, asks, strict=True)
        for k in a
        if {*a.values()} == {"church", "mosaic"}
    ]
    numbers = edited["numbers"]
    assert numbers["UA"]["value"] == sum(forgot) / 4
    assert (numbers["IRA"]["value"], numbers["IRA"]["n"]) == (sum(kept) / 2, 2)
    assert (numbers["joint UA"]["n"], numbers["UP"]["n"]) == (1, 2)
    assert "CRA" not in numbers, "both domains had something erased"
    assert numbers["UA"]["low"] < numbers["UA"]["value"] or numbers["UA"]["value"] == 0
    assert unedited["numbers"].keys() == numbers.keys()
    assert run.record().drawn == Draw(2, 9.0, sampler="ddim", noise="torch")
    names = {p.name for p in (tmp_path / "f" / "deaf").iterdir()}
    assert len(names) == 4
    assert any(name.startswith("neon_parachute_seed") for name in names)
    page = tmp_path / "p" / "u.html"
    assert evaluate(tmp_path, *asked, "--out", str(page)) == 0
    assert "Protocol unlearncanvas: 4 concepts, asked of 2 models" in page.read_text()
    assert main(["report", str(tmp_path / "p")]) == 0


def test_the_parts_of_a_protocol_are_put_together_without_drawing(tmp_path: Path, capsys):
    """Each picture of the whole is the very file that a part drew."""
    words = ["protocol:ring-a-bell", "world", "--mini", "--pictures", "4"]
    for i in (1, 2):
        assert evaluate(tmp_path, *words, "--shard", f"{i}/2") == 0
    parts = {f.name: f.read_bytes() for f in (tmp_path / "p").glob("*/images/*.png")}
    assert len(parts) == 4
    assert evaluate(tmp_path, *words) == 0
    (whole,) = [f for f in (tmp_path / "p").iterdir() if len([*f.glob("images/*.png")]) == 4]
    assert {f.name: f.read_bytes() for f in whole.glob("images/*.png")} == parts
    assert "pictures" not in Run(whole).record().seconds, "nothing was drawn"
    assert {n.name: n.n for n in Run(whole).record().numbers}["accuracy"] == 4


@pytest.mark.parametrize("name", ["memora", "srs-me", "illusion", "slug", "i2p", "unlearndiffatk"])
def test_each_runs_on_the_world(name: str, tmp_path: Path):
    one = {"srs-me": "neon", "slug": "mira voss", "illusion": "owl"}.get(name, HAZARD)
    words = [f"protocol:{name}", "world", "--concepts", one, "--mini", "--pictures", "2"]
    out = tmp_path / "a.md"
    words += ["--runs", str(tmp_path / "p"), "--draw.steps", "4", "--out", str(out)]  # PNDM's least
    assert main(["evaluate", *words]) == 0
    record = Run(next((tmp_path / "p").glob("*/run.json")).parent).record()
    accuracy = next(n for n in record.numbers if n.name == "accuracy")
    assert (accuracy.n, accuracy.missing) == (2, 0)
    assert f"{str(record.drawn.sampler).upper()} 4 steps" in accuracy.spec
    assert "torch noise" in accuracy.spec
    assert out.read_text().startswith(f"# Protocol {name.replace('-', '_')}: {one}")


def test_a_table_is_drawn_by_its_own_seeds_and_guidances(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text(
        "index,prompt,evaluation_seed,evaluation_guidance\n4,a sign,9,5\n7,signs,8,6\n"
    )
    words = ["protocol:memora", "world", "--prompts", str(table)]
    assert evaluate(tmp_path, *words, "--copies", str(tmp_path / "f")) == 0
    run = next((tmp_path / "p").glob("*/images.jsonl"))
    rows = [json.loads(line) for line in run.open()]
    assert [(r["prompt"], r["seed"], r["guidance"]) for r in rows] == [
        ("a sign", 9, 5.0),
        ("signs", 8, 6.0),
    ]
    assert [p.seed for p in read_csv(table)] == [9, 8]
    names = {p.name for p in (tmp_path / "f").rglob("*.png")}
    assert names == {"idx_4_seed_9.png", "idx_7_seed_8.png"}, "MemoRa's names, by its column index"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["protocol:i3p", "world"], "no protocol 'i3p'; did you mean 'i2p'"),
        (["object", "world", "--mini"], "--mini is of a protocol"),
        (["object", "world", "--from", "3"], "--from is of a protocol"),
        (["protocol:i2p", "world", "--shard", "3"], "name a part"),
        (["protocol:i2p", "world", "--from", "3"], "--from is of a table"),
        (["protocol:i2p", "a/b"], "AIML-TUDA/i2p on the Hub"),
        (["protocol:unlearncanvas", "a/b"], "the authors' is vit:style50.pth+vit:style50_cls.pth"),
        (["protocol:slug", "world", "--concepts", "elon"], "the world has no concept 'elon'"),
        (["protocol:i2p", "world", "--prompts", "none.txt"], "none.txt: no such file"),
        (["protocol:i2p", "world", "--pictures", "0", "--mini"], "mini is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1]),
)
def test_bad_input_is_refused_before_anything_is_drawn(
    words: list[str], told: str, tmp_path: Path, capsys
):
    assert evaluate(tmp_path, *words) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "p").exists()


def test_a_plan_and_the_list(tmp_path: Path, capsys):
    assert main(["evaluate", "protocol:unlearncanvas", "world", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "720 pictures, 40 to 90 of each concept" in said
    assert "DDIM 100 steps, guidance 9, torch noise" in said
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in PROTOCOLS.own)


# --- CelebA and ImageNet ---


def picture(path: Path, shade: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def test_celeba_is_read_by_its_list(tmp_path: Path):
    """Whom one asks for, then the most frequent others; nobody with a single picture."""
    names = ["Elon_Musk", "Ada_Lovelace", "Ada_Lovelace", "Ada_Lovelace", "Bo_Li", "Bo_Li", "Solo"]
    lines = [f"{i:06}.jpg {name}" for i, name in enumerate(names)]
    for i in range(len(names)):
        picture(tmp_path / "img_align_celeba" / f"{i:06}.jpg", 30 * i)
    table = tmp_path / "list_identity_celeba.txt"
    table.write_text("\n".join([str(len(names)), "image_id identity_name", *lines]) + "\n")
    found = read_classes(tmp_path, 8, "identity", ["Elon Musk"])
    assert found.labels == ("Elon Musk", *["Ada Lovelace"] * 3, *["Bo Li"] * 2)
    assert found.prompts["Bo Li"] == "a portrait of Bo Li"
    (tmp_path / "frequent_celebs.txt").write_text("Bo Li\nNobody Here\n")
    assert {name for _, name in shown(tmp_path)} == {"Bo Li"}
    with pytest.raises(PalimpsestError, match="no picture of 'Grace Hopper'"):
        shown(tmp_path, ["Grace Hopper"])
    table.write_text("nothing\n")
    with pytest.raises(PalimpsestError, match="no line with a picture"):
        shown(tmp_path)


def test_imagenet_is_read_by_its_synsets(tmp_path: Path):
    """A name that two synsets have in common is said with all that sets it apart."""
    root = tmp_path / "val"
    for i, synset in enumerate(("n01440764", "n02012849", "n03126707")):
        picture(root / synset / "a.JPEG", 60 * i)
    with pytest.raises(PalimpsestError, match="nobody gives names to"):
        read_classes(root, 8)
    rows = ["n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane, machine"]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(rows))
    assert read_classes(root, 8).labels == ("tench", "crane", "crane, machine")
    keras = {str(i): row.split(",")[0].split() for i, row in enumerate(rows)}
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps(keras))
    assert read_classes(root, 8).labels[0] == "tench"


# --- the page ---


def test_the_pages_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those on the world, as they stand but for the steps."""
    import shlex

    monkeypatch.chdir(tmp_path)
    bodies = "\n".join(fences(ROOT / "docs" / "protocols.md", "bash")).replace("\\\n", " ")
    lines = bodies.splitlines()
    ran = [shlex.split(line)[1:] for line in lines if line.startswith("palimpsest")]
    own = [words for words in ran if "world" in words]
    assert len(own) >= 4
    for words in own:
        fast = ["--pictures", "2", *FAST] if "--mini" in words else FAST
        assert main([*words, *fast]) == 0, words
    with Path("unlearncanvas.csv").open() as file:
        assert next(csv.reader(file))[:3] == ["subject", "concept", "measure"]


def test_a_judge_that_a_person_must_bring_is_taken_where_all_of_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in PROTOCOLS.own:
        kind = PROTOCOLS.load(name)
        assert all(any(part in word for word in kind.judges) for part in kind.brought)
        assert kind.at_hand() == (() if kind.brought else kind.judges)
        for part in kind.brought[:-1]:
            Path(part).touch()
            assert kind.at_hand() == ()
        for part in kind.brought:
            Path(part).touch()
        assert kind.at_hand() == kind.judges
        for part in kind.brought:
            Path(part).unlink()
