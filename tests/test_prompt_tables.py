"""Tables of prompts as benchmarks and people write them: every dialect gives its own pictures."""

from __future__ import annotations

import contextlib
import csv as tables
import io
import re
from pathlib import Path
from string import ascii_letters

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.cli import main
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_table
from palimpsest.core.prompts import KINDS, Names, Part, Prompt, read_csv, read_prompts, write_csv
from palimpsest.erase import ConceptAblation
from palimpsest.runs.folder import Run
from palimpsest.runs.images import asked

WHOLE = Part()
BIG = 4261553411
KNOWN: Names = {
    "parachute": ("object", "parachute"),
    "van gogh": ("style", "van gogh"),
    "ada": ("identity", "ada"),
}


def read(
    path: Path, text: str, part: Part = WHOLE, names: Names | None = None
) -> tuple[dict[int, Prompt], list[str]]:
    """Row → prompt of a table with this text, and what is said of it."""
    path.write_text(text, encoding="utf-8", newline="")
    told: list[str] = []
    return read_prompts(path, part, names, told.append), told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


# --- seeds and guidances ---

SEEDS = """evaluation_seed sd_seed seed seeds random_seed Seed SEED sdSeed eval_seed image_seed"""
GUIDANCES = """evaluation_guidance sd_guidance_scale guidance_scale guidance cfg cfg_scale cfgScale
CFGScale sd_guidance Guidance-Scale"""


@pytest.mark.parametrize("seed", [*SEEDS.split(), "Evaluation seed"])
def test_a_seed_is_found_under_every_name_that_benchmarks_give_it(path: Path, seed: str):
    found, told = read(path, f"prompt,{seed},hard\na cat,{BIG},1\na dog,7,0\n")
    assert [prompt.seed for prompt in found.values()] == [BIG, 7]
    assert not told


@pytest.mark.parametrize("guidance", [*GUIDANCES.split(), "CFG scale"])
def test_a_guidance_is_found_under_every_name(path: Path, guidance: str):
    found, told = read(path, f"{guidance},prompt\n13,a cat\n7.5,a dog\n")
    assert [prompt.guidance for prompt in found.values()] == [13.0, 7.5]
    assert not told


HEADERS = {
    "blanks": "prompt , evaluation_seed,  evaluation_guidance\na parachute, 12, 7.5\n",
    "blanks before quotes": 'prompt, seed, cfg\n"a parachute", 12, "7.5"\n',
    "capitals": "Prompt,Seed,Guidance\na parachute,12,7.5\n",
    "a mark of the byte order": "\ufeffprompt,seed,cfg\r\na parachute,12,7.5\r\n",
    "an index of pandas": "Unnamed: 0,prompt,seed,cfg\n5,a parachute,12,7.5\n",
    "an index without a name": ",prompt,seed,cfg\n5,a parachute,12.0,7.5\n",
    "semicolons": "prompt;seed;cfg\na parachute;12;7,5\n",
    "tabs": "prompt\tseed\tcfg\na parachute\t12\t7.5\n",
    "semicolons and commas": "seed;prompt;cfg;tags, all\n12;a parachute;7,5;a, b, c, d, e\n",
    "commas and semicolons": "prompt,seed,cfg,tags;all\na parachute,12,7.5,a;b;c;d;e\n",
    "a name in quotes": '"prompt";"seed, of SD";"seed";"cfg"\na parachute;5;12;7.5\n',
    "blank lines above": "\n\nprompt,seed,cfg\na parachute,12,7.5\n",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_read_however_it_is_written(path: Path, case: str):
    found, _ = read(path, HEADERS[case])
    assert list(found.values()) == [Prompt("a parachute", 12, guidance=7.5)]


CELLS = {"12.0": 12, "12.": 12, "12.000000": 12, "12,0": 12, "0": 0, str(2**63 - 1): 2**63 - 1}


@pytest.mark.parametrize("cell", CELLS)
def test_a_whole_seed_is_read_to_the_last_digit(path: Path, cell: str):
    found, _ = read(path, f'prompt,seed\na cat,"{cell}"\n')
    assert found[2].seed == CELLS[cell]


NONE = ["4.26E+09", "-1", "1.5", "4,000", "4.000", "1,234,567", "[1, 2]", "x", str(2**63), "inf"]


@pytest.mark.parametrize("cell", NONE)
def test_a_seed_that_was_rounded_or_is_none_is_refused(path: Path, cell: str):
    with pytest.raises(PalimpsestError, match=r"row 3: sd_seed is .* must be a whole number"):
        read(path, f'prompt,sd_seed\na cat,1\na cat,"{cell}"\n')


@pytest.mark.parametrize("cell", ["much", "-1", "inf", "1e400", "7.5.1"])
def test_a_guidance_that_is_no_number_is_refused(path: Path, cell: str):
    with pytest.raises(PalimpsestError, match=r"row 2: cfg is .* must be a number from 0 up"):
        read(path, f"prompt,cfg\na cat,{cell}\n")


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "None", "<NA>", "null", "N/A"])
def test_a_gap_of_pandas_is_no_number_and_no_concept(path: Path, cell: str):
    text = (
        f"prompt,evaluation_seed,guidance,object\na cat,{cell},{cell},{cell}\na dog,3.0,2.0,dog\n"
    )
    found, told = read(path, text)
    assert list(found.values()) == [
        Prompt("a cat", 0, guidance=None),
        Prompt("a dog", 3, guidance=2.0, asks={"object": "dog"}),
    ]
    assert told == [f"{path}, row 2: no evaluation_seed; drawn from seed 0"]


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("prompt,evaluation_seed,sd_seed", ["'sd_seed' looks like a seed", "'evaluation_seed' is"]),
        ("prompt,seed,Seed", ["'Seed' looks like a seed", "'seed' is"]),
        ("prompt,my_seed,hard", ["'my_seed' looks like a seed", "call it 'seed'"]),
        ("prompt,cfg,guidance_scale", ["'cfg' looks like a guidance", "'guidance_scale' is"]),
        ("prompt,negative_guidance,x", ["'negative_guidance' looks like a guidance"]),
        ("target_prompt,adv_prompt,x", ["'target_prompt' is not used, 'adv_prompt' is"]),
        ("prompt,Prompt,x", ["'Prompt' is not used, 'prompt' is"]),
        ("prompt,seed,prompt_toxicity", []),
    ],
)
def test_a_column_that_one_might_think_is_used_is_named(path: Path, header: str, named: list[str]):
    _, told = read(path, f"{header}\n1,2,3\n")
    assert all(name in told[0] for name in named)
    assert len(told) == bool(named)


# --- rows ---


def test_empty_rows_are_skipped_and_named_once(path: Path, tmp_path: Path, capsys):
    text = "prompt,seed\na cat,1\n  ,2\n\na dog,3\n,\nnan,4\na fish,5\n\n\n"
    found, told = read(path, text)
    assert {row: prompt.text for row, prompt in found.items()} == {
        2: "a cat",
        5: "a dog",
        8: "a fish",
    }
    assert told == [f"{path}, rows 3, 4, 6, 7: no prompt; skipped"]
    out = tmp_path / "out"
    assert main(["generate", "--csv", str(path), "--out", str(out), "--draw.steps", "1"]) == 0
    assert capsys.readouterr().err.count("rows 3, 4, 6, 7: no prompt; skipped") == 1
    assert [p.seed for p in read_csv(out / "prompts.csv")] == [1, 3, 5]


def test_of_very_many_empty_rows_the_first_are_named(path: Path):
    _, told = read(path, "prompt,seed\n" + ",1\n" * 50 + "a cat,2\n")
    assert told == [
        f"{path}, rows {', '.join(map(str, range(2, 22)))} and 30 more: no prompt; skipped"
    ]


@pytest.mark.parametrize("rows", [",1\n,2\n", "nan,1\n", ' ,3\n""\n'])
def test_a_table_of_empty_rows_alone_is_refused(path: Path, rows: str):
    with pytest.raises(PalimpsestError, match="holds no prompts"):
        read(path, f"prompt,seed\n{rows}")


@pytest.mark.parametrize(
    "text",
    [
        "prompt,seed\na cat,1\na dog\n",
        "seed,prompt\n1,a cat\n2\n",
        "prompt,object,cfg\na cat,cat,7\na dog,dog\n",
        'prompt,seed\na cat,1\n"a dog\n and its tail,2\na fish,3\n',
    ],
)
def test_a_row_that_is_cut_short_is_refused_and_drawn_from_no_seed(path: Path, text: str):
    with pytest.raises(PalimpsestError, match="row 3: is cut short"):
        read(path, text)


def test_a_row_that_lacks_what_it_asks_for_is_named(path: Path):
    found, told = read(path, "prompt,seed,object,note\na cat,1,cat\na dog,2\n")
    assert found[3] == Prompt("a dog", 2)
    assert told == [f"{path}, row 3: fewer cells than columns; the others are read as empty"]


TEN = "prompt,seed\n" + "".join(f"picture {i},{i}\n" for i in range(2, 12))


def test_shards_are_counted_by_rows_and_make_up_the_whole(path: Path):
    whole, _ = read(path, TEN)
    assert list(whole) == list(range(2, 12))
    assert all(prompt.seed == row for row, prompt in whole.items())
    shards = [read(path, TEN, Part(None, *part))[0] for part in ((2, 4), (5, 10), (11, None))]
    assert [len(shard) for shard in shards] == [3, 6, 1], "the last row is taken, too"
    assert {k: v for shard in shards for k, v in shard.items()} == whole
    with pytest.raises(PalimpsestError, match="holds no prompts from row 12 to its end"):
        read(path, TEN, Part(None, 12))


def test_shards_on_the_command_line_are_the_pictures_of_the_whole(path: Path, tmp_path: Path):
    path.write_text(TEN)
    made = {}
    for name, words in (
        ("all", ["--to", "4"]),
        ("first", ["--to", "2"]),
        ("rest", ["--from=3", "--to=4"]),
    ):
        out = tmp_path / name
        command = ["generate", "--csv", str(path), "--out", str(out), "--draw.steps", "1", *words]
        assert main(command) == 0
        made[name] = [p.read_bytes() for p in sorted(out.glob("0*.png"))]
    assert [len(some) for some in made.values()] == [3, 1, 2]
    assert made["first"] + made["rest"] == made["all"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "1"], "they begin with row 2"),
        (["--from", "0", "--to", "4"], "they begin with row 2"),
        (["--from", "6", "--to", "4"], "--from 6 --to 4: no rows"),
        (["--from", "40"], "holds no prompts from row 40"),
        (["--column", "caption"], "no column named 'caption'"),
    ],
)
def test_rows_and_columns_that_are_not_there_are_refused(
    path: Path, tmp_path: Path, capsys, words: list[str], told: str
):
    path.write_text(TEN)
    assert main(["generate", "--csv", str(path), *words, "--out", str(tmp_path / "out")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert main(["generate", "a cat", *words, "--out", str(tmp_path / "out")]) == 2
    assert "is of a table of prompts; name one with --csv" in capsys.readouterr().err
    assert main(["erase", "uce", "--concept", "cat", *words, "--runs", str(tmp_path / "out")]) == 2
    assert "is of a table of prompts; name one with --prompts" in capsys.readouterr().err
    assert main(["erase", "salun", "--model", "clip:world", "--concept", "cat", *words]) == 2
    assert f"{words[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the column of prompts ---


@pytest.mark.parametrize(
    "name", ["prompt", "Prompt", "PROMPTS", "adv_prompt", "Adversarial prompt"]
)
def test_a_column_of_prompts_is_known_by_its_usual_names(path: Path, name: str):
    assert read(path, f"id,{name}\n1,a cat\n")[0] == {2: Prompt("a cat")}


@pytest.mark.parametrize("name", ["caption", "text", "my words"])
def test_another_column_of_prompts_is_named_by_a_flag(path: Path, name: str):
    with pytest.raises(PalimpsestError, match=rf"its columns: id, {name}\); name it with --column"):
        read(path, f"id,{name}\n1,a cat\n")
    for said in (name, name.upper()):
        assert read(path, f"id,{name}\n1,a cat\n", Part(said)) == ({2: Prompt("a cat")}, [])
    both = f"prompt,{name}\na dog,a cat\n"
    assert [read(path, both, Part(c))[0][2].text for c in (None, name)] == ["a dog", "a cat"]


# --- what a prompt asks for ---


@pytest.mark.parametrize(
    ("column", "cell", "asks"),
    [
        ("object", "golf ball", {"object": "golf ball"}),
        ("class", "golf ball", {"object": "golf ball"}),
        ("class", "Parachute", {"object": "parachute"}),
        ("class", "Van Gogh", {"style": "van gogh"}),
        ("artist", "Claude Monet", {"style": "Claude Monet"}),
        ("artist", "Vincent van Gogh", {"style": "van gogh"}),
        ("Artist", "van_gogh", {"style": "van gogh"}),
        ("style", "PARACHUTE", {"style": "PARACHUTE"}),
        ("target", "parachute", {"object": "parachute"}),
        ("target", "Vincent van Gogh", {"style": "van gogh"}),
        ("concept", "Ada", {"identity": "ada"}),
        ("target", "a red parachute", {}),
        ("target", "Pablo Picasso", {}),
        ("categories", "violence, parachute", {}),
        ("object", "nan", {}),
    ],
)
def test_what_a_column_says_is_asked_for(path: Path, column: str, cell: str, asks: dict[str, str]):
    found, told = read(path, f'prompt,{column}\nwords,"{cell}"\n', names=KNOWN)
    assert found[2].asks == asks
    lost = column in ("target", "concept") and not asks
    assert len(told) == lost
    assert not lost or f"{cell!r}, is no concept here by that name" in told[0]


def test_a_column_of_a_kind_comes_before_one_that_only_may_be_of_it(path: Path):
    found, _ = read(path, "prompt,class,object\nwords,dog,cat\n", names=KNOWN)
    assert found[2].asks == {"object": "cat"}


@pytest.mark.parametrize(
    "header", ["prompt,class,artist", "prompt;target;style", "Prompt\tObject\tartist"]
)
def test_rates_are_counted_by_what_a_foreign_table_asks_for(
    path: Path, tmp_path: Path, header: str
):
    (mark,) = (mark for mark in ",;\t" if mark in header)
    lines = [["a parachute", "Parachute", "photo"], ["a cat", "cat", "photo"]]
    path.write_text("\n".join([header, *(mark.join(line) for line in lines)]))
    runs = tmp_path / "runs"
    words = ["erase", "uce", "--concept", "parachute", "--prompts", str(path), "--runs", str(runs)]
    assert main([*words, "--draw.steps", "1", "--force", "--no-gold"]) == 0
    (folder,) = runs.glob("uce-*")
    run = Run.open(folder)
    assert [prompt.asks for prompt in asked(run)] == [
        {"object": "parachute", "style": "photo"},
        {"object": "cat", "style": "photo"},
    ]
    counted = {number.name: number.n for number in run.record().numbers}
    assert (counted["UA"], counted["IRA"]) == (1, 1)


def test_captions_of_a_method_are_read_alike(path: Path):
    path.write_text("\ufeffPrompt;seed\nan old balloon;1.0\n;2\n")
    ablation = ConceptAblation(captions=path)
    concept = Concept("parachute", anchor="balloon")
    assert ablation._pairs(concept) == [(("an old parachute",), "an old balloon")]


# --- round trips ---

TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\",;'"), min_size=1
).filter(lambda t: t.strip() == t and t.lower() not in ("nan", "none", "null", "<na>", "n/a"))
NUMBER = st.floats(0, 1e6, exclude_max=True)


@st.composite
def prompts(draw: st.DrawFn) -> list[Prompt]:
    asks = st.dictionaries(st.sampled_from(KINDS), TEXT, max_size=2)
    row = st.builds(
        Prompt,
        text=TEXT,
        seed=st.integers(0, 2**63 - 1),
        guidance=st.none() | NUMBER,
        case=TEXT,
        asks=asks,
    )
    return draw(st.lists(row, min_size=1, max_size=5))


@settings(deadline=None, max_examples=200)
@given(written=prompts())
def test_what_is_written_is_read_again(tmp_path_factory, written: list[Prompt]):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        write_csv(written, file)
    told: list[str] = []
    assert read_csv(path, told.append) == written
    assert not [sentence for sentence in told if "skipped" in sentence]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), delimiter=st.sampled_from(",;\t"), whole=st.booleans())
def test_every_delimiter_gives_the_same_cells(tmp_path_factory, data, delimiter: str, whole: bool):
    name = st.text(ascii_letters + "_: ", min_size=1).filter(lambda n: n.strip() == n)
    columns = data.draw(st.lists(name, min_size=2, max_size=5, unique=True))
    row = st.lists(TEXT, min_size=len(columns), max_size=len(columns))
    rows = data.draw(st.lists(row, max_size=4))
    file = io.StringIO(newline="")
    tables.writer(
        file, delimiter=delimiter, quoting=tables.QUOTE_ALL if whole else tables.QUOTE_MINIMAL
    ).writerows([columns, *rows])
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    found, read = read_table(path)
    assert found == columns
    assert [[*row.cells.values()] for row in read] == rows


@pytest.mark.parametrize("command", ["generate", "erase uce"])
def test_help_names_the_flags_of_tables(command: str, capsys):
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert all(re.search(rf"--{flag} ", said) for flag in ("column", "from", "to"))
