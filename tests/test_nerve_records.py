"""Whatever a record, a table or a picture holds: it is read, or refused in a sentence.

`CASES` mutations of each kind of file are tried; `PALIMPSEST_FUZZ=700` tries as many.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.cli import console, main, open_run, subjects
from palimpsest.core import files, typed
from palimpsest.core.concepts import says
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import read_csv
from palimpsest.data import images as pictures
from palimpsest.data.read import look_into, read_folder, read_masks, read_pairs
from palimpsest.judge import references
from palimpsest.judge.networks import Network
from palimpsest.judge.world import Classifier
from palimpsest.methods import Reading, Spec
from palimpsest.report import write_report
from palimpsest.report.sections.themes import write_themes
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.record import Record
from palimpsest.runs.scoring import Panel, rejudge

CASES = int(os.environ.get("PALIMPSEST_FUZZ", "48"))
RUNS = Path(__file__).parent / "fixtures" / "runs"
ORIGINAL, SPM = "original-270e9b45", "spm-church-c002e18f"
MEMORA, ATTACK = "memora-church-on-spm-678cfdfc", "unlearn_diff_atk-church-on-spm-992d988b"
CLIP, LLAVA = "clip/slug-church-e477fd08", "llava/slug-church-24b39d05"
THEMED = ("themes/object-world_unedited-d4b9795d", "themes/object-spm-church-c002e18f-804948e0")
TOLD = (SPM, MEMORA, ATTACK, CLIP, LLAVA, THEMED[1], ORIGINAL)

fuzz = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


class Raw(str):
    """A value that stands in the file as it is."""


WRONG = (
    *(None, True, False, -1, 0, 2, 0.5, 1e308, 10**30, 10**400, "", "../../x", "/etc/passwd"),
    *([], {}, [[]], [{}], [None], {"": None}, "a\0b", "church", ".", "x" * 5000, "<b>&\"'"),
    *(nested(90), Raw("1e999"), Raw("NaN"), Raw('"\\ud800"'), Raw("9" * 5000), Raw("[" * 2000)),
    *(Raw("[" * 2000 + "]" * 2000), "[/x] [red]"),
)
"""What may stand where something else belongs."""


def dumped(value: Any) -> str:
    """JSON, in which `Raw` stands as it is."""
    text = json.dumps(value, default=str)
    for raw in {str(w): w for w in WRONG if isinstance(w, Raw)}.values():
        text = text.replace(json.dumps(f"raw {raw}"), raw)
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value may be exchanged; of a list, in its first two."""
    yield path
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value[:2])
        for key, each in pairs:
            yield from places(each, (*path, key))


def exchanged(draw: Callable[..., Any], value: Any) -> Any:
    """A copy in which something is another value, stands under another name, or is gone."""
    value = copy.deepcopy(value)
    *most, last = draw(st.sampled_from([p for p in places(value) if p]))
    home = value
    for key in most:
        home = home[key]
    wrong = draw(st.sampled_from(WRONG))
    match draw(st.sampled_from(["value", "value", "value", "gone", "name"])):
        case "gone":
            del home[last]
        case "name" if isinstance(home, dict):
            home[draw(st.sampled_from(["", "more", "format", "file", "a\0"]))] = home.pop(last)
        case _:
            home[last] = f"raw {wrong}" if isinstance(wrong, Raw) else wrong
    return value


def broken_json(draw: Callable[..., Any], data: bytes) -> bytes:
    return dumped(exchanged(draw, json.loads(data))).encode()


def broken_rows(draw: Callable[..., Any], data: bytes) -> bytes:
    rows = [json.loads(line) for line in data.splitlines()]
    if draw(st.integers(0, 4)) == 0:
        rows[draw(st.integers(0, len(rows) - 1))] = draw(st.sampled_from([None, 1, [], "x", {}]))
    else:
        rows = exchanged(draw, rows)
    return "".join(f"{dumped(row)}\n" for row in rows).encode()


def broken_bytes(draw: Callable[..., Any], data: bytes) -> bytes:
    """Cut short, turned, doubled or overwritten somewhere."""
    at, n = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 64))
    some = draw(st.binary(min_size=1, max_size=8))
    return {
        "cut": data[:at],
        "turned": data[:at] + bytes([data[at] ^ (1 << n % 8)]) + data[at + 1 :],
        "gone": data[:at] + data[at + n :],
        "doubled": data[:at] + data[at : at + n] * 2 + data[at + n :],
        "over": data[:at] + some + data[at + len(some) :],
        "quoted": data[:at] + b'"' + data[at:],
        "nul": data[:at] + b"\0" + data[at:],
    }[draw(st.sampled_from(["cut", "turned", "gone", "doubled", "over", "quoted", "nul"]))]


Breaking = Callable[[Callable[..., Any], bytes], bytes]


def broken(whole: bytes, *ways: Breaking) -> st.SearchStrategy[bytes]:
    """The contents of a file that was tampered with."""

    @st.composite
    def made(draw: Callable[..., Any]) -> bytes:
        return draw(st.sampled_from(ways))(draw, whole)

    return made()


@contextmanager
def bearable() -> Iterator[None]:
    """Anything but success or one sentence fails; what a terminal would show is not shown."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            yield
        except PalimpsestError as error:
            said = str(error)
        else:
            said = "it went well"
    assert said
    assert "\n" not in said


class Eyes:
    """A judge without weights."""

    spec = Spec("world judge", "1", 64)
    classes: ClassVar = {"object": ("church", "cat", "fish"), "style": ("photo", "mosaic")}

    def read(self, images: Tensor) -> Reading:
        """Say church to all."""
        n = len(images)
        said = {"object": ["church"] * n, "style": ["photo"] * n}
        return Reading(said, {kind: [0.9] * n for kind in said})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the fixtures; what a test changes there it puts back."""
    return Path(shutil.copytree(RUNS, tmp_path_factory.mktemp("nerve") / "runs"))


@contextmanager
def holding(path: Path, data: bytes) -> Iterator[Path]:
    """A file that holds something else for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.write_bytes(before)


def told(runs: Path, name: str) -> None:
    """Tell a run in every way that a command does."""
    run = Run.open(runs / name)
    record = run.record()
    record.write(runs / "again.json")
    assert Record.read(runs / "again.json").kind == record.kind
    write_report([run.folder], runs / "report.html")
    console.numbers(name, [(record.title, run)])
    console.curves([("", run)])
    console.notes([("", run)])
    console.found("", run)


def used(runs: Path, name: str) -> None:
    """Start from a run as recover, evaluate and the verbs of patches do."""
    folder = runs / name
    run = open_run.finished(Run.open(folder))
    record = run.record()
    _ = record.drawn, open_run.of_world(record), [c.sentences for c in record.concepts]
    [each.text for each in images.asked(run)]
    if record.kind in ("erase", "recover", "original"):
        subjects.read(str(folder), "world", None).patches()
    if record.concept is not None:
        open_run.concept_of(run)


# --- what is whole is read ---


@pytest.mark.parametrize("name", TOLD)
def test_what_is_whole_is_told_and_used(runs: Path, name: str):
    told(runs, name)
    if name != ATTACK:
        used(runs, name)
    if not name.startswith(("clip", "llava")):
        run = Run.open(runs / name)
        assert images.pictures(run, images.asked(run)).shape[1:] == (3, 64, 64)
        assert set(images.labels(run, images.asked(run))) >= {"object", "style"}


# --- records and rows ---


@pytest.mark.parametrize("name", TOLD)
def test_a_broken_record_is_told_or_refused(runs: Path, name: str):
    path = runs / name / "run.json"

    @fuzz
    @given(broken(path.read_bytes(), broken_json, broken_json, broken_json, broken_bytes))
    def tried(data: bytes):
        with holding(path, data):
            with bearable():
                told(runs, name)
            with bearable():
                used(runs, name)

    tried()


ROWS = [
    *((name, file) for name in (SPM, ATTACK) for file in ("images.jsonl", "scores.jsonl")),
    (SPM, "log.jsonl"),
    (LLAVA, "answers.jsonl"),
]


@pytest.mark.parametrize(("name", "file"), ROWS)
def test_broken_rows_are_told_or_refused(runs: Path, name: str, file: str):
    path = runs / name / file
    prompts = images.asked(Run(runs / name))

    @fuzz
    @given(broken(path.read_bytes(), broken_rows, broken_rows, broken_bytes))
    def tried(data: bytes):
        run = Run(runs / name)
        with holding(path, data):
            for use in (
                lambda: told(runs, name),
                lambda: [{(r.get("label"), r.get("step")) for r in run.rows(file)}],
                lambda: images.labels(run, prompts),
                lambda: images.pictures(run, images.asked(run)),
            ):
                with bearable():
                    use()

    tried()


def test_a_broken_run_is_judged_or_refused(tmp_path: Path):
    for name in (SPM, ORIGINAL):
        shutil.copytree(RUNS / name, tmp_path / name)
    run, scored = Run(tmp_path / SPM), (tmp_path / ORIGINAL / "run.json").read_bytes()
    panel = Panel(Eyes())  # type: ignore[arg-type]
    rejudge(run, panel)
    assert run.record().numbers
    whole = run.path("run.json").read_bytes()

    @fuzz
    @given(broken(whole, broken_json, broken_bytes))
    def tried(data: bytes):
        run.path("run.json").write_bytes(data)
        (tmp_path / ORIGINAL / "run.json").write_bytes(scored)
        with bearable():
            rejudge(run, panel)

    tried()


def test_a_broken_evaluation_is_a_page_or_refused(runs: Path):
    told_of = [Run(runs / name) for name in THEMED]
    write_themes(told_of, runs / "page.html")

    @fuzz
    @given(
        st.sampled_from(["run.json", "images.jsonl", "scores.jsonl"]).flatmap(
            lambda file: st.tuples(
                st.just(file),
                broken(
                    told_of[1].path(file).read_bytes(),
                    broken_json if file == "run.json" else broken_rows,
                    broken_bytes,
                ),
            )
        )
    )
    def tried(case: tuple[str, bytes]):
        with holding(told_of[1].path(case[0]), case[1]):
            for ending in ("html", "md", "csv", "json"):
                with bearable():
                    write_themes(told_of, runs / f"page.{ending}")

    tried()


# --- pictures, captions and tables ---


def picture(form: str = "PNG", size: tuple[int, int] = (12, 12)) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot(size, (-2, -1, 1, 1), 20).convert("RGB").save(file, form)
    return file.getvalue()


def swollen(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its data holds."""
    data = bytearray(picture())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def tar_of(*members: tuple[str, bytes], mode: Literal["w:", "w:gz"] = "w:") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


SAMPLES = [("0.png", picture()), ("0.txt", b"a church"), ("1.jpg", picture("JPEG"))]
SAMPLES += [("1.txt", b"a cat")]
METADATA = b"".join(
    json.dumps({"file_name": f"{n}.png", "text": f"a {n}", "seed": 0}).encode() + b"\n"
    for n in ("church", "cat")
)
TABLE = b'image,text\npictures/church.png,a church\npictures/cat.png,"a cat, drawn"\n'
PROMPTS = (RUNS.parent / "prompts.csv").read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of two captioned pictures, a table, a tar and prompts."""
    (tmp_path / "pictures").mkdir()
    for name in ("church", "cat"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(picture())
    (tmp_path / "pictures" / "metadata.jsonl").write_bytes(METADATA)
    (tmp_path / "table.csv").write_bytes(TABLE)
    (tmp_path / "two.tar").write_bytes(tar_of(*SAMPLES))
    (tmp_path / "prompts.csv").write_bytes(PROMPTS)
    return tmp_path


def pairs(path: Path) -> None:
    read_pairs(str(path), 8)
    read_pairs(str(path), 8, strict=True)


def picked(path: Path) -> None:
    look_into(path.parent)
    read_folder(path.parent, 8)


READ: dict[str, tuple[Callable[[Path], object], tuple[Breaking, ...]]] = {
    "pictures/metadata.jsonl": (lambda p: pairs(p.parent), (broken_rows, broken_bytes)),
    "table.csv": (pairs, (broken_bytes,)),
    "two.tar": (pairs, (broken_bytes,)),
    "prompts.csv": (read_csv, (broken_bytes,)),
    "pictures/church.png": (picked, (broken_bytes,)),
}


@pytest.mark.parametrize("file", READ)
def test_a_broken_file_of_a_person_is_read_or_refused(place: Path, file: str):
    path, (use, ways) = place / file, READ[file]
    use(path)

    @fuzz
    @given(broken(path.read_bytes(), *ways))
    def tried(data: bytes):
        with holding(path, data), bearable():
            use(path)

    tried()


@pytest.mark.parametrize("form", pictures.FORMATS)
def test_a_broken_picture_is_none(form: str):
    whole = picture(form)
    assert pictures.decode(whole, 8) is not None
    assert pictures.decode(whole[: len(whole) // 3], 8) is None

    @fuzz
    @given(broken(whole, broken_bytes))
    def tried(data: bytes):
        pictures.decode(data, 8)

    tried()


@pytest.mark.parametrize("form", ["GIF", "TIFF", "ICO", "PPM", "TGA"])
def test_only_the_formats_that_are_named_are_decoded(form: str):
    assert pictures.decode(picture(form, (16, 16)), 8) is None


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(place: Path):
    file = place / "pictures" / "cat.png"
    file.write_bytes(swollen(1 << 14, 1 << 13))
    for use in (look_into, lambda folder: read_folder(folder, 8)):
        with pytest.raises(PalimpsestError, match=r"cat\.png.*16384 × 8192 pixels"):
            use(file.parent)
    assert read_pairs(str(file.parent), 8).skipped == (f"{file}: not a picture",)


@contextmanager
def bomb() -> Iterator[bytes]:
    """A sparse member that promises a terabyte in a few bytes."""
    info = tarfile.TarInfo("bomb.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    yield bytes(header)


def test_a_tars_links_devices_and_bombs_are_passed_over(place: Path):
    (place / "secret.txt").write_text("secret")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as tar, bomb() as sparse:
        tar.fileobj.write(sparse)  # type: ignore[union-attr]
        tar.offset += len(sparse)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("0.txt")
            info.type, info.linkname = kind, str(place / "secret.txt")
            tar.addfile(info)
        for name, data in SAMPLES:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (place / "two.tar").write_bytes(file.getvalue())
    assert read_pairs(str(place / "two.tar"), 8).texts == ("a church", "a cat")


def test_a_member_of_too_many_bytes_ends_a_tar(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("palimpsest.data.sources.MOST_BYTES", 10_000)
    whole = tar_of(*SAMPLES, ("2.png", bytes(10_001)), ("2.txt", b"a fish"))
    (place / "two.tar").write_bytes(whole)
    found = read_pairs(str(place / "two.tar"), 8)
    assert found.texts == ("a church", "a cat")
    assert "2.png" in found.skipped[0]
    (place / "two.tar").write_bytes(tar_of(*SAMPLES, mode="w:gz"))
    with pytest.raises(PalimpsestError, match="no captioned picture"):
        read_pairs(str(place / "two.tar"), 8)


def test_metadata_reads_nothing_outside_its_folder(place: Path):
    (place / "outside.png").write_bytes(picture())
    rows = [{"file_name": n, "text": "a church"} for n in ("../outside.png", "church.png")]
    metadata = place / "pictures" / "metadata.jsonl"
    metadata.write_text("\n".join(map(json.dumps, rows)))
    found = read_pairs(str(place / "pictures"), 8)
    assert len(found) == 1
    assert any("../outside.png has a caption, but is not there" in s for s in found.skipped)


TABLES = {
    "a field that is too long": (f"prompt\n{'x' * 200_000}\n", "row 2"),
    "two columns of one name": ("prompt,prompt\na,b\n", "two columns are named 'prompt'"),
    "no header": ("", "no column named 'prompt'"),
    "more cells than columns": ("prompt,object\na church, a cat,church\n", "row 2: more cells"),
    "a header in quotes that stay open": ('"prompt,object\na church,church\n', "row 1: goes over"),
    "no text": (b"prompt\n\xff\xfe\n", "UTF-8"),
    "half a character": (b"prompt\n\xed\xa0\x80\n", "UTF-8"),
    "a seed of too many digits": (f"prompt,evaluation_seed\na,{'9' * 5000}\n", "row 2"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_is_none_is_refused_in_a_sentence(tmp_path: Path, case: str):
    path, (text, why) = tmp_path / "prompts.csv", TABLES[case]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PalimpsestError, match=why):
        read_csv(path)
    assert main(["generate", "--csv", str(path), "--out", str(tmp_path / "out")]) == 2


def test_a_table_may_have_gaps_marks_and_empty_cells_at_its_end(tmp_path: Path):
    path = tmp_path / "prompts.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,object,,\r\na church,church,,\r\n\r\na cat\r\n")
    assert [p.text for p in read_csv(path)] == ["a church", "a cat"]
    assert [p.asks for p in read_csv(path)] == [{"object": "church"}, {}]


def test_the_rest_of_a_broken_table_of_captions_is_named(place: Path):
    with (place / "table.csv").open("a") as file:
        csv.writer(file).writerow(["pictures/cat.png", "x" * 200_000])
    found = read_pairs(str(place / "table.csv"), 8)
    assert found.texts == ("a church", "a cat, drawn")
    assert "row 4" in found.skipped[0]


# --- what never ends ---


@pytest.fixture
def soon() -> Iterator[None]:
    """Whoever waits for a pipe is woken, and fails."""
    import signal

    def late(*_: object) -> None:
        raise TimeoutError("it hung")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.fixture
def pipe() -> Callable[[Path], Path]:
    """Put a pipe in a file's place."""

    def put(path: Path) -> Path:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return path

    return put


Pipe = Callable[[Path], Path]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("file", READ)
def test_a_pipe_in_the_place_of_a_persons_file_is_refused(place: Path, pipe: Pipe, file: str):
    READ[file][0](place / file)
    with pytest.raises(PalimpsestError):
        READ[file][0](pipe(place / file))


@pytest.mark.usefixtures("soon")
def test_a_pipe_beside_a_picture_is_no_caption_and_none_is_a_mask(place: Path, pipe: Pipe):
    folder = place / "pictures"
    (folder / "metadata.jsonl").unlink()
    (folder / "church.txt").write_text("a church")
    pipe(folder / "cat.txt")
    assert read_pairs(str(folder), 8).texts == ("a church",)
    (masks := place / "masks").mkdir()
    pipe(masks / "church.png")
    with pytest.raises(PalimpsestError, match=r"masks/church\.png"):
        read_masks(masks, [folder / "church.png"], 8)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("file", ["run.json", "images.jsonl", "scores.jsonl", "picture"])
def test_a_pipe_in_a_run_is_refused(tmp_path: Path, pipe: Pipe, file: str):
    run = Run(Path(shutil.copytree(RUNS / SPM, tmp_path / SPM)))
    write_report([run.folder], tmp_path / "report.html")
    prompts = images.asked(run)
    pipe(run.path(images.picture_name(prompts[0]) if file == "picture" else file))
    with pytest.raises(PalimpsestError, match=SPM):
        write_report([run.folder], tmp_path / "report.html")
    for use in (images.labels, images.pictures):
        with bearable():
            use(run, images.asked(run))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Runs that a test may break."""
    return Path(shutil.copytree(RUNS, tmp_path / "runs"))


def edited(folder: Path, **changed: Any) -> None:
    """Write other values into a record."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("circle", [[MEMORA], [MEMORA, "another"], [MEMORA, "another", "third"]])
def test_runs_that_attack_one_another_are_refused(copied: Path, circle: list[str]):
    for name in circle[1:]:
        shutil.copytree(copied / MEMORA, copied / name)
    for folder, subject in zip(circle, [*circle[1:], circle[0]], strict=True):
        open_run.patches_from(copied / folder)
        edited(copied / folder, subject=subject)
    for use in (
        open_run.patches_from,
        lambda path: subjects.read(str(path), "world", None).patches(),
        lambda path: write_report([path], copied / "report.html"),
    ):
        with pytest.raises(PalimpsestError, match="attacked itself"):
            use(copied / MEMORA)


# --- names and places ---

NAMES = [
    *("../../x", "", ".", "..", "...", "/", "a/b\\c", "CON", "nul", "aux.txt", "COM1.png", "LPT¹"),
    *("name. ", "tab\tand\nline", "a\0b", "\u202egnp.exe", "x" * 5000, "馬" * 300, 'a"<>|?*:b'),
    *("\ud800", "-", "~", " "),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", ["title", "alone"])
def test_a_run_lies_in_its_folder_whatever_its_concept_is_called(
    tmp_path: Path, name: str, make: str
):
    title = images.title(f"spm-{name}") if make == "title" else name
    run = Run.place(tmp_path / "runs", title, Record(kind="erase"))
    run.folder.mkdir()
    assert run.folder.resolve().parent == (tmp_path / "runs").resolve()
    for part in (run.name, files.component(name), f"{files.only_component(name)}.checkpoint"):
        assert part == Path(part).name
        assert len(part.encode()) <= 255
        assert not set(part) & set('/\\:*?"<>|\0\n\t\u202e')
        assert not part.endswith((".", " "))
        assert not files.DEVICE.match(part)
        assert files.is_component(part)


def test_a_plain_name_stays_as_it_is(tmp_path: Path):
    name = Run.place(tmp_path, images.title("spm-van gogh"), Record(kind="erase")).name
    assert name.startswith("spm-van_gogh-")
    assert files.only_component("erasing-church") == "erasing-church"
    assert files.only_component("a/b") != files.only_component("a:b")


OUTSIDE = ["../../x", "/etc", "a/b", "..", ".", "", "a\\b", "C:x", "a\0"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["original", "gold", "subject"])
def test_a_record_names_no_run_of_another_folder(copied: Path, field: str, name: str):
    edited(copied / MEMORA, **{field: name})
    with pytest.raises(PalimpsestError, match="not a run record"):
        Record.read(copied / MEMORA / "run.json")


@pytest.mark.parametrize("file", ["run.json", "../secret.png", "images/../../secret.png", "link"])
@pytest.mark.parametrize(("name", "rows"), [(SPM, "images.jsonl"), (LLAVA, "answers.jsonl")])
def test_a_report_shows_no_picture_of_another_place(copied: Path, name: str, rows: str, file: str):
    run = Run(copied / name)
    secret = run.folder.parent / "secret.png"
    secret.write_bytes(picture(size=(16, 16)))
    write_report([run.folder], copied / "report.html")
    lines = [json.loads(line) for line in run.path(rows).read_text().splitlines()]
    if file == "link":
        file = "images/link.png"
        run.path(file).symlink_to(secret)
    for line in lines:
        line["file"] = file
    run.path(rows).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PalimpsestError):
        write_report([run.folder], copied / "report.html")


def test_a_judge_looks_at_no_picture_behind_a_link(copied: Path):
    run = Run(copied / SPM)
    prompts = images.asked(run)
    file = run.path(images.picture_name(prompts[0]))
    file.rename(copied / "elsewhere.png")
    file.symlink_to(copied / "elsewhere.png")
    with pytest.raises(PalimpsestError, match="leads out"):
        images.pictures(run, prompts)


def test_the_run_in_the_working_folder_has_its_name(copied: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(copied / MEMORA)
    assert Run.open(Path()).name == MEMORA
    assert len(open_run.patches_from(Path())) == 2


# --- sentences ---


def test_a_row_that_is_missing_or_wrong_says_what_to_do(copied: Path):
    run = Run(copied / SPM)
    prompts, scores = images.asked(run), run.path("scores.jsonl")
    first, second = scores.read_text().splitlines()[:2]
    scores.write_text(f"{first}\n{second[:40]}")
    assert len(run.rows("scores.jsonl")) == 1, "half a last row is left out"
    with pytest.raises(PalimpsestError, match="palimpsest judge"):
        images.labels(run, prompts)
    scores.write_text(f"{second[:40]}\n{first}\n")
    with pytest.raises(PalimpsestError, match=r"scores\.jsonl, line 1"):
        run.rows("scores.jsonl")
    scores.write_text(first.replace('"church"', "3"))
    with pytest.raises(PalimpsestError, match=r"row 1: labels: object: 3 is no text; remove"):
        run.rows("scores.jsonl")


def test_pictures_of_two_sizes_are_refused(copied: Path):
    run = Run(copied / SPM)
    prompts = images.asked(run)
    run.path(images.picture_name(prompts[1])).write_bytes(picture())
    with pytest.raises(PalimpsestError, match="12 × 12 and of 64 × 64"):
        images.pictures(run, prompts)


@pytest.mark.parametrize("text", ["[" * 2000 + "]" * 2000, "1" * 5000, "{", "", '{"a": }', "\0"])
def test_json_that_is_none_is_refused(text: str):
    assert files.parse_json("[[1e2, {}]]", "it") == [[100.0, {}]]
    with pytest.raises(PalimpsestError, match="it: no whole JSON"):
        files.parse_json(text, "it")


@dataclass(frozen=True)
class Inner:
    """A value inside another."""

    share: float
    side: Literal["left", "right"] = "left"


@dataclass(frozen=True)
class Outer:
    """One field of every form."""

    text: str
    number: int = 0
    sure: bool = False
    maybe: int | None = None
    inner: tuple[Inner, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    whatever: Any = None


OUTER = Outer("a", 3, True, 4, (Inner(0.5, "right"),), {"b": 1.0}, [{"c": None}])


def test_a_value_comes_back_from_its_json():
    for value in (OUTER, Outer(""), replace(OUTER, number=-(2**63) + 1)):
        assert typed.build(Outer, json.loads(json.dumps(typed.plain(value)))) == value
    nan = typed.build(Inner, typed.plain(Inner(float("nan"))))
    assert nan.share != nan.share
    assert typed.build(Outer, {"text": "a", "newer": 1, "maybe": None}) == Outer("a")


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"text": 1}, "text: 1 is no text"),
        ({"text": None}, "there is no 'text'"),
        ({"number": True}, "number: True is no whole number"),
        ({"number": 1.0}, "number: 1.0 is no whole number"),
        ({"number": 2**63}, "number: 9223372036854775808 is no whole number"),
        ({"sure": 2}, "sure: 2 is no true or false"),
        ({"maybe": "4"}, "maybe: '4' is no whole number"),
        ({"inner": {}}, "inner: {} is no list"),
        ({"inner": [{"share": float("inf")}]}, "inner: share: inf is no number"),
        ({"inner": [{"share": 10**400}]}, "is no number"),
        ({"inner": [{"share": True}]}, "inner: share: True is no number"),
        ({"inner": [{"share": 1, "side": "up"}]}, "inner: side: 'up' is no left, right"),
        ({"inner": [{"share": 1, "side": []}]}, r"inner: side: \[\] is no left, right"),
        ({"by_name": {"b": "1"}}, "by_name: b: '1' is no number"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_place(changed: dict[str, Any], where: str):
    with pytest.raises(TypeError, match=where):
        typed.build(Outer, typed.plain(OUTER) | changed)


def test_names_of_concepts_are_text_and_never_patterns(copied: Path):
    for name in ("(a+)+$", "[", "a|b", "\\", "x*"):
        assert says(f"here is {name} and more", name)
        assert not says("nothing of it", name)
    concept = {"name": '<img src=x onerror="a">(', "kind": "object"}
    edited(copied / SPM, concept=concept, title="<b>")
    for old in copied.glob(f"{SPM}/images/*"):
        odd = old.with_name(f"{old.stem}'\"&<i>.png")
        rows = (copied / SPM / "images.jsonl").read_text()
        (copied / SPM / "images.jsonl").write_text(
            rows.replace(json.dumps(f"images/{old.name}"), json.dumps(f"images/{odd.name}"))
        )
        old.rename(odd)
    page = write_report([copied / SPM], copied / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "<b>" not in page.split("<h1>")[1].split("</h1>")[0]


# --- judges that a record names ---


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "ref", ["../../x", "", "a\0", "/dev/zero", "pipe", "text", "folder", "x" * 5000]
)
def test_a_judge_that_a_record_names_is_loaded_or_refused(tmp_path: Path, pipe: Pipe, ref: str):
    pipe(tmp_path / "pipe")
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "folder").mkdir()
    named = {"pipe": str(tmp_path / "pipe"), "text": str(tmp_path / "text")}
    entry = references.Entry("world judge", ref=named.get(ref, ref))
    assert references.load_judge(references.Entry("world judge", ref="world"))
    with pytest.raises(PalimpsestError, match="cannot be loaded"):
        references.load_judge(entry)


HEADER = {"heads": {"object": ["church", "none of these"]}, "widths": [8, 16], "version": "9"}


def test_a_judges_broken_header_is_refused(tmp_path: Path):
    path = tmp_path / "judge.safetensors"
    network = Network({"object": ("church", "none of these")}, (8, 16))
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}

    def load(header: str) -> Classifier:
        save_file(weights, path, {"judge": header})
        return Classifier.load(path)

    assert load(json.dumps(HEADER)).spec.version == "9"

    @fuzz
    @given(broken(json.dumps(HEADER).encode(), broken_json))
    def tried(header: bytes):
        with bearable():
            load(header.decode())

    tried()


def test_a_curve_is_over_the_same_pictures_at_every_point(copied: Path):
    curve = json.loads((copied / MEMORA / "run.json").read_text())["curve"]
    curve[-1]["says"] = [*curve[-1]["says"], True]
    edited(copied / MEMORA, curve=curve)
    with pytest.raises(PalimpsestError, match="not over the same pictures"):
        Record.read(copied / MEMORA / "run.json")
