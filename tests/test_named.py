"""Several concepts on one command line: how they are written, erased, judged and shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.cli import main
from palimpsest.cli.named import Named, kind_and_name, read_concepts
from palimpsest.cli.tree import once
from palimpsest.core.concepts import says
from palimpsest.core.errors import PalimpsestError
from palimpsest.report import write_report
from palimpsest.runs.folder import Run
from palimpsest.runs.images import title
from palimpsest.world import suite

PROMPTS = """prompt,evaluation_seed,object,style
A parachute image in photo style.,1,parachute,photo
A church image in van gogh style.,2,church,van gogh
A parachute image in van gogh style.,3,parachute,van gogh
A cat image in neon style.,4,cat,neon
"""
TWO = ("--concept", "parachute", "style:van gogh")


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("named")
    (folder / "prompts.csv").write_text(PROMPTS)
    words = ("--prompts", folder / "prompts.csv", "--runs", folder / "runs")
    assert run("erase", "uce", *TWO, *words) == 0
    (made,) = (folder / "runs").glob("uce-*")
    return Run.open(made)


# --- one run, one patch, judged together and each ---


def test_one_run_erases_both_and_judges_each(erased: Run):
    record = erased.record()
    assert [(c.kind, c.name) for c in record.concepts] == [
        ("object", "parachute"),
        ("style", "van gogh"),
    ]
    assert erased.name.startswith("uce-parachute-van_gogh-")
    # one of the three pictures asks for both, and counts for each
    assert [row.n for row in record.numbers if row.name == "UA"] == [4]
    each = {row.concept: row.n for row in record.by_concept if row.name == "UA"}
    assert each == {"parachute": 2, "van gogh": 2}
    own = [row.name for row in record.each if "by world CLIP" not in row.name]
    assert own[-2:] == ["UA, parachute", "UA, van gogh"]


def test_no_concept_is_kept_for_the_sake_of_another(erased: Run):
    for concept in erased.record().concepts:
        assert concept.keep
        others = {"parachute", "van gogh"} - {concept.name}
        assert not any(says(text, *others) for text in concept.keep)
        assert concept.anchor not in ("parachute", "van gogh", None)


def test_the_page_shows_both(erased: Run, tmp_path: Path):
    page = write_report([erased.folder], tmp_path / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.partition("<script")[0]).split())
    assert "parachute and van gogh" in text
    assert "another object or style" in text
    for name in ("UA, parachute", "UA, van gogh"):
        assert name in page


def test_a_recovery_wants_one_of_them(erased: Run, capsys, tmp_path: Path):
    assert run("recover", "restoration", erased.folder, "--dry-run") == 2
    assert "erased parachute, van gogh; say with --concept" in capsys.readouterr().err
    assert run("recover", "restoration", erased.folder, "--concept", "van goh") == 2
    assert "did you mean 'van gogh'?" in capsys.readouterr().err
    words = ("--concept", "van gogh", "--subject", "erased", "--runs", tmp_path)
    assert run("recover", "restoration", erased.folder, *words, "--dry-run") == 0
    assert "van gogh" in capsys.readouterr().out


def test_the_suite_of_several_asks_for_each_and_for_nothing_twice():
    both = [suite.concept("parachute"), suite.concept("van gogh")]
    prompts = suite.suite(both)
    for concept in both:
        asked = [p for p in prompts if p.wants(concept.kind, concept.name)]
        assert len(asked) >= 48
    assert len({(p.text, p.seed, p.index) for p in prompts}) == len(prompts)
    assert suite.suite(both[:1]) == suite.suite(both[0])


# --- how they are written ---


def names(*words: str, **more: object) -> list[tuple[str, str, str | None]]:
    named = Named(concept=words, **more)  # type: ignore[arg-type]
    return [(c.name, c.kind, c.anchor) for c in named.wanted(world=False)]


def test_a_kind_may_stand_before_a_name_and_other_colons_belong_to_it():
    assert names("parachute", "style:van gogh") == [
        ("parachute", "object", None),
        ("van gogh", "style", None),
    ]
    assert names("2001: a space odyssey", kind="identity")[0][:2] == (
        "2001: a space odyssey",
        "identity",
    )


def test_anchors_are_one_for_all_or_one_for_each():
    assert [a for _, _, a in names("cat", "dog", anchor=("fox",))] == ["fox", "fox"]
    assert [a for _, _, a in names("cat", "dog", anchor=("fox", "wolf"))] == ["fox", "wolf"]
    with pytest.raises(PalimpsestError, match="3 anchors for 2 concepts"):
        names("cat", "dog", anchor=("a", "b", "c"))


def test_what_is_kept_and_meant_too_is_said_with_it():
    (cat,) = Named(concept=("cat",), keep=("a dog",), synonyms=("kitten",)).wanted(world=False)
    assert (cat.keep, cat.synonyms) == (("a dog",), ("kitten",))
    with pytest.raises(PalimpsestError, match="--synonyms are those of one concept"):
        names("cat", "dog", synonyms=("kitten",))


def test_a_file_names_more(tmp_path: Path):
    path = tmp_path / "concepts.txt"
    path.write_text(
        "# the list\nMira, of Voss | identity | a woman\n\ncat  # the pet\n"
        "style:neon\u2028light\r\n",
        encoding="utf-8-sig",
    )
    assert names("owl", concepts=path) == [
        ("owl", "object", None),
        ("Mira, of Voss", "identity", "a woman"),
        ("cat", "object", None),
        ("neon\u2028light", "style", None),
    ]
    assert [a for _, _, a in names("owl", concepts=path, anchor=("fox", "wolf", "emu", "elk"))] == [
        "fox",
        "a woman",
        "emu",
        "elk",
    ]
    for line, said in (
        ("cat | styel", "line 1: no kind 'styel'; did you mean 'style'?"),
        ("| style", "line 1: write `name"),
        ("a | style | b | c", "line 1: write `name"),
    ):
        path.write_text(line)
        with pytest.raises(PalimpsestError, match=re.escape(said)):
            read_concepts(path)
    with pytest.raises(PalimpsestError, match="no such file"):
        read_concepts(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concept", "cat;dog"], "is that one name or several? Write several apart"),
        (["--concept", "cat, dog"], "--concept 'cat' 'dog'"),
        (["--concept", "cat", "--concept", "cat"], "named twice"),
        (["--concept", "parachute", "--kind", "style"], "of kind 'style' and is of kind 'object'"),
        (["--concept", "parachute", "--kind", "style", "--judge", "none"], "leave the kind out"),
        (
            ["--concept", "cat", "dog", "--anchor", "dog"],
            "'dog' is to be forgotten: no anchor, and not to be kept",
        ),
        (["--concept", "parachute", "--anchor", "parachute"], "is to be forgotten"),
        (["--concept", "parachute", "--keep", "parachute"], "is to be forgotten"),
        (["--concept", "style:"], "name it with --concept"),
        (["--concept", "style:parachute"], "of kind 'style' and is of kind 'object'"),
        (["--concept", "parachute", "--anchor", "baloon"], "did you mean 'balloon'?"),
        ([], "name it with --concept"),
    ],
    ids=str,
)
def test_what_is_unclear_is_refused_before_anything_is_loaded(words, said, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert run("erase", "uce", *words, "--runs", runs) == 2
    assert said in capsys.readouterr().err
    assert not runs.exists()


def test_a_repeated_flag_takes_all_its_values_and_one_of_a_single_value_is_refused(capsys):
    words, twice = once(["--concept", "a", "--seed", "1", "--concept=b", "c"])
    assert (words, twice) == (["--concept", "a", "b", "c", "--seed", "1"], "--concept")
    assert run("erase", "esd", "--concept", "cat", "--seed", "1", "--seed", "2") == 2
    assert "--seed is given twice and takes one value" in capsys.readouterr().err


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=8))
def test_words_without_a_repeated_flag_stay_as_they_are(words: list[str]):
    found, twice = once(words)
    assert twice or found == words
    assert sorted(found) == sorted(words) or twice


@given(st.text(st.characters(codec="utf-8"), max_size=120))
def test_a_concepts_name_is_one_legal_part_of_a_folders_name(text: str):
    part = title(f"esd-{text}")
    assert not set(part) & set('/\\:*?"<>|\0\n')
    assert part not in (".", "..")
    assert ".." not in part
    assert len(part) <= 80
    assert not part.endswith((".", " "))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_word_is_a_kind_and_a_name_or_a_name(word: str):
    kind, name = kind_and_name(word)
    assert name in word
    assert (kind is None) or word.startswith(f"{kind}:")
