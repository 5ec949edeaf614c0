"""Settings are checked when they are made, edits never stay behind, and trouble is one sentence."""

from __future__ import annotations

import errno
import gc
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor

from palimpsest.cli import main
from palimpsest.cli.patch.export import Export
from palimpsest.core import fields as fieldwise
from palimpsest.core import provenance
from palimpsest.core.atomic import whole, whole_folder
from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import OutOfMemoryError, PalimpsestError, Settings, WriteError
from palimpsest.core.prompts import Prompt
from palimpsest.erase import ERASERS, ESD
from palimpsest.judge.clip import Clip
from palimpsest.methods import Context, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.sampling import Sampling
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, Replacement
from palimpsest.recover import RECOVERIES
from palimpsest.toolbox.curricula import TrainingData
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.optimise import Recipe

# --- settings ---


def every_kind() -> Iterator[type[Any]]:
    """Each method, and each class of settings that is nested in one."""
    todo: list[Any] = [r.load(name) for r in (ERASERS, RECOVERIES) for name in r.own]
    seen = set()
    while todo:
        kind = todo.pop()
        if kind in seen:
            continue
        seen.add(kind)
        yield kind
        todo += [h for h in fieldwise.asked(kind).values() if is_dataclass(h)]


KINDS = sorted({*every_kind(), Draw, Sampling, Concept}, key=lambda kind: kind.__name__)


def made(of: type[Any], **settings: Any) -> Any:
    """One with these settings, and a name where it needs one."""
    return of(**{**({"name": "cat"} if of is Concept else {}), **settings})


def choices(hint: Any) -> tuple[Any, ...]:
    arms = [hint] if get_origin(hint) is Literal else get_args(hint)
    return tuple(c for arm in arms if get_origin(arm) is Literal for c in get_args(arm))


def test_every_field_of_every_method_can_be_checked():
    """The control: a type that could not be told at run time would be checked by nothing."""
    assert len(KINDS) > 30
    for kind in KINDS:
        assert {f.name for f in fields(kind)} == set(fieldwise.asked(kind)), kind
    assert sum(bool(choices(h)) for k in KINDS for h in fieldwise.asked(k).values()) > 30


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_choice_is_one_of_those_there_are(kind: type[Any]):
    for name, hint in fieldwise.asked(kind).items():
        for choice in choices(hint):
            with suppress(PalimpsestError):  # it may not fit the others' defaults
                assert getattr(made(kind, **{name: choice}), name) == choice
            fieldwise.fitted(choice, hint)
        if choices(hint):
            with pytest.raises(PalimpsestError, match=rf"^{kind.__name__}: {name} is 'nonsense'"):
                made(kind, **{name: "nonsense"})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_value_of_another_type_is_refused(kind: type[Any]):
    for name in fieldwise.asked(kind):
        with pytest.raises(PalimpsestError, match=rf"^{kind.__name__}: {name} is <object"):
            made(kind, **{name: object()})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Latents(source="frozn"), "did you mean 'frozen'"),  # type: ignore[arg-type]
        (lambda: ESD(latents="nope"), "must be a Latents"),  # type: ignore[arg-type]
        (lambda: ESD(steps=True), "steps is True; it must be a whole number"),
        (lambda: ESD(steps="3"), "steps is '3'; it must be a whole number"),  # type: ignore[arg-type]
        (lambda: ESD(steps=3.0), "steps is 3.0; it must be a whole number"),  # type: ignore[arg-type]
        (lambda: ESD(lr=float("nan")), "lr is nan; it must be a number"),
        (lambda: Latents(folder=Path("a\0b"), source="noised"), "without NUL"),
        (lambda: TrainingData(allow_target=1), "True or False"),  # type: ignore[arg-type]
        (lambda: TrainingData(related=5), "a tuple, each a text"),  # type: ignore[arg-type]
        (lambda: Recipe(3, 0.1, "adamx"), "did you mean 'adam"),  # type: ignore[arg-type]
        (lambda: Sampling(noise="torhc"), "did you mean 'torch'"),  # type: ignore[arg-type]
        (lambda: Draw(empty="zero"), "did you mean 'zeros'"),  # type: ignore[arg-type]
        (lambda: Concept("cat", "objct"), "did you mean 'object'"),  # type: ignore[arg-type]
        (lambda: Concept("a\0b"), "name is 'a.x00b'; it must be a text, without NUL"),
        (lambda: Concept("a \ud800"), "in Unicode"),
        (lambda: Prompt(5), "text is 5"),  # type: ignore[arg-type]
        (lambda: Prompt("a", seed=1.0), "seed is 1.0"),  # type: ignore[arg-type]
        (lambda: Task("cat"), "concepts is 'cat'"),  # type: ignore[arg-type]
        (lambda: Task.of("cat"), "is no task: give a Concept"),  # type: ignore[arg-type]
        (lambda: Task.of({Concept("cat"), Concept("dog")}), "is no task"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_said(make: Callable[[], Any], said: str):
    with pytest.raises(PalimpsestError, match=said) as told:
        make()
    assert "\n" not in str(told.value)


def test_what_means_the_same_is_taken():
    assert ESD(lr=1).lr == 1
    steps = ESD(steps=np.int64(3)).steps  # type: ignore[arg-type]
    assert (steps, type(steps)) == (3, int)
    rate = ESD(lr=np.float32(0.5)).lr  # type: ignore[arg-type]
    assert (rate, type(rate)) == (0.5, float)
    concept = Concept("cat", keep="dog", synonyms=["kitten"])  # type: ignore[arg-type]
    assert (concept.keep, concept.synonyms) == (("dog",), ("kitten",))
    assert concept == Concept("cat", keep=("dog",), synonyms=("kitten",))
    assert Latents(folder="here", source="noised").folder == Path("here")  # type: ignore[arg-type]
    assert Task([Concept("cat")]).concepts == (Concept("cat"),)  # type: ignore[arg-type]


def test_no_class_can_leave_the_check_out():
    @dataclass(frozen=True)
    class Forgetful(Settings):
        n: int = 1
        least: ClassVar = dict(n=1)

        def __post_init__(self) -> None:
            assert self.n + 1  # which a text would break

    @dataclass(frozen=True)
    class Below(Forgetful):
        way: Literal["up", "down"] = "up"

        def __post_init__(self) -> None:
            pass

    wrongs: list[dict[str, Any]] = [{"n": "a"}, {"n": 0}, {"way": "dwon"}]
    for wrong in wrongs:
        with pytest.raises(PalimpsestError):
            Below(**wrong)
    with pytest.raises(PalimpsestError):
        Forgetful(n="a")  # type: ignore[arg-type]
    assert Below(2, "down").n == 2


# --- patches worn ---


@pytest.fixture
def worn(model: Diffusion) -> list[Patch]:
    """Three patches that meet in two weights: shifts, and a replacement."""
    first, second = [n for n in model.matrices("xattn")][:2]
    g = torch.Generator().manual_seed(0)

    def like(name: str) -> Tensor:
        return torch.randn(model.matrices("xattn")[name].shape, generator=g) * 0.1

    return [
        Patch({first: (Dense(like(first)),), second: (Dense(like(second)),)}),
        Patch({first: (Replacement(like(first)),)}),
        Patch({first: (Dense(like(first)),), second: (Dense(like(second)),)}),
    ]


def state(model: Diffusion) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model._parameters.items()}


def same(model: Diffusion, other: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, other[name]) for name, p in model._parameters.items())


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_patches_are_left_in_any_order(model, weights, worn, order):
    blocks = [model.patched(patch) for patch in worn]
    for block in blocks:
        block.__enter__()
    assert not same(model, weights)
    left = [0, 1, 2]
    for i in order:
        blocks[i].__exit__(None, None, None)
        left.remove(i)
        now = state(model)
        base = {n: p for n, p in weights.items() if n in model._pristine}
        assert all(torch.equal(model._pristine[n], p) for n, p in base.items())
        assert model._pristine.keys() == {n for k in left for n in worn[k].edits}
        held = list(model._applied)
        assert len(held) == len(left)
        if left:  # as if the rest alone had been put on
            assert all(
                torch.equal(now[n], p) for n, p in wearing(model, weights, worn, left).items()
            )
    assert same(model, weights)
    assert not model._applied


def wearing(model, weights, worn, left) -> dict[str, Tensor]:
    from palimpsest.patch.edits import edited

    found = {name: weights[name] for patch in worn for name in patch.edits}
    for k in left:
        for name, edits in worn[k].edits.items():
            found[name] = edited(found[name], edits)
    return found


def test_nested_patches_are_left_by_the_very_tensors(model, worn):
    name = next(iter(worn[1].edits))
    before = model._parameters[name].data.data_ptr()
    with model.patched(worn[0]):
        between = model._parameters[name].data.data_ptr()
        with model.patched(worn[1]):
            assert model._parameters[name].data.data_ptr() not in (before, between)
        assert model._parameters[name].data.data_ptr() == between
    assert model._parameters[name].data.data_ptr() == before


def test_a_block_that_is_never_left_leaves_nothing(model, weights, worn):
    model.patched(worn[0]).__enter__()  # nobody holds it
    gc.collect()
    assert same(model, weights)
    held, lost = model.patched(worn[0]), model.patched(worn[1])
    with held:
        lost.__enter__()
        del lost
        gc.collect()
        assert len(model._applied) == 1
    assert same(model, weights)


def test_an_error_while_entering_leaves_the_model_as_it_was(model, weights, worn, monkeypatch):
    from palimpsest.models import editable

    calls, real = [], editable.edited

    def breaks(base: Tensor, edits: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return real(base, edits)

    monkeypatch.setattr(editable, "edited", breaks)
    with pytest.raises(RuntimeError, match="memory"), model.patched(worn[0]):
        pass
    monkeypatch.undo()
    assert same(model, weights)
    assert not model._applied
    assert not model._pristine


def test_a_hook_is_left_before_a_patch_over_it(model, weights, worn):
    negative = ERASERS.load("negative_prompt")()(model, Concept("parachute")).patch
    hooked, over = model.patched(negative), model.patched(worn[0])
    hooked.__enter__()
    over.__enter__()
    unedited = model.unedited()
    name = next(iter(worn[0].edits))
    assert torch.equal(unedited.weight(name), weights[name])
    hooked.__exit__(None, None, None)
    assert model._hook is None
    assert not same(model, weights)
    assert torch.equal(model.student({}).weight(name), model._parameters[name])
    over.__exit__(None, None, None)
    assert same(model, weights)


# --- one text, none ---


@pytest.fixture
def quick(model: Diffusion) -> Diffusion:
    return model.with_sampling(Sampling(steps=1, batch=4))


def test_one_text_is_one_prompt(quick: Diffusion, clip: Clip):
    one = quick.generate("a dog")
    assert len(one) == 1
    assert torch.equal(one, quick.generate(["a dog"]))
    assert torch.equal(one, quick.generate(Prompt("a dog")))
    assert len(quick.embed("a dog").ids) == 1  # type: ignore[arg-type]
    assert torch.equal(quick.rows("a dog"), quick.rows(["a dog"]))
    assert torch.equal(clip.texts("a dog"), clip.texts(["a dog"]))
    assert len(clip.encoder.tokens("a dog")) == 1


def test_no_text_is_no_picture(quick: Diffusion, clip: Clip):
    assert quick.generate([]).shape == (0, 3, quick.side, quick.side)
    for ask in (quick.embed, clip.texts, clip.encoder.tokens):
        with pytest.raises(PalimpsestError, match=r"one text or several, and was given \[\]"):
            ask([])


# --- memory ---

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


def short(monkeypatch, holds: int, error: Exception) -> list[int]:
    """Let no more than so many pictures fit into the memory; the sizes that were tried."""
    tried, real = [], Diffusion._evaluate

    def evaluate(self: Diffusion, x: Tensor, *rest: Any) -> Tensor:
        tried.append(len(x))
        if len(x) > holds:
            raise error
        return real(self, x, *rest)

    monkeypatch.setattr(Diffusion, "_evaluate", evaluate)
    return tried


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:30] or "MemoryError")
def test_too_large_a_batch_is_halved(quick: Diffusion, monkeypatch, error):
    prompts = [Prompt("a dog", seed) for seed in range(5)]
    whole_batch, told = quick.generate(prompts), []
    tried = short(monkeypatch, 1, error)
    small = quick.generate(prompts, Context(tell=told.append))
    assert tried == [4, 2, 1, 1, 1, 1, 1]
    assert ["4 pictures" in told[0], "2 pictures" in told[1], len(told)] == [True, True, 2]
    assert torch.allclose(small, whole_batch, atol=1e-4)


def test_one_picture_that_does_not_fit_is_a_sentence(quick: Diffusion, monkeypatch):
    short(monkeypatch, 0, OUT_OF_MEMORY[0])
    with pytest.raises(OutOfMemoryError, match="does not hold one picture: take --dtype bfloat16"):
        quick.generate(["a dog", "a cat"])


def test_another_error_is_no_lack_of_memory(quick: Diffusion, monkeypatch):
    tried = short(monkeypatch, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        quick.generate("a dog")
    assert tried == [1]


# --- commands ---


def refused(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("error", "said"),
    [(error, "the memory ran out") for error in OUT_OF_MEMORY]
    + [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OSError(errno.ENOSPC, "No space left on device", "here"), "here: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "here"), "here: Read-only file system"),
    ],
    ids=repr,
)
def test_trouble_in_a_command_is_one_sentence(capsys, monkeypatch, error, said):
    def fails(words: list[str]) -> int:
        raise error

    monkeypatch.setattr("palimpsest.cli.tree.dispatch", fails)
    assert said in refused(capsys, "list")


def test_a_mistake_of_ours_still_shows_where_it_is(monkeypatch):
    def fails(words: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr("palimpsest.cli.tree.dispatch", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["list"])


def test_a_nul_in_a_word(capsys, tmp_path: Path):
    for words in (["generate", "a\0b"], ["erase", "esd", "--concept", "a\0"], ["a\0"]):
        assert "NUL" in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(monkeypatch, closed):
    monkeypatch.setattr(sys, closed, None)
    assert main(["list"]) == 0
    assert main(["nonsense"]) == 2


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (subprocess.TimeoutExpired("git", 10), {"commit": "unknown"}),
        (subprocess.CalledProcessError(128, "git"), {}),
        (FileNotFoundError("git"), {}),
        (PermissionError("git"), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_git_may_be_slow_or_absent(monkeypatch, error, found):
    def run(*words: Any, **settings: Any) -> Any:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert provenance.commit() == found


def test_the_commit_is_that_of_our_own_tree(tmp_path: Path, monkeypatch):
    """A package installed below somebody's repository is none of it."""

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    own = tmp_path / "provenance.py"
    own.write_text("", encoding="utf-8")
    git("commit", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(provenance, "__file__", str(own))
    assert provenance.commit() == {}
    git("add", own.name)
    assert provenance.commit().keys() == {"commit", "dirty"}


# --- a full disk ---

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from safetensors.torch import save_file
from palimpsest.core.atomic import whole, whole_folder
from palimpsest.core.errors import WriteError

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
many = torch.randn(30_000)
writers = {
    "safetensors": lambda part: save_file({"a": many}, part),
    "torch": lambda part: torch.save(many, part),
    "pickle": lambda part: torch.save(many, part, _use_new_zipfile_serialization=False),
    "png": lambda part: Image.fromarray(many[:1].numpy().repeat(9).astype("u1")).save(part, "PNG"),
    "text": lambda part: part.write_text("a" * 30_000, encoding="utf-8"),
}
noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), "u1")
writers["png"] = lambda part: Image.fromarray(noise).save(part, format="PNG")
folder = Path(sys.argv[1])
for name, write in writers.items():
    (folder / name).write_text("old", encoding="utf-8")
    try:
        with whole(folder / name) as part:
            write(part)
    except WriteError as error:
        print(name, error)
    try:
        with whole_folder(folder / "sub") as part:
            write(part / name)
    except WriteError as error:
        print(name, error)
"""


def test_whoever_writes_a_full_disk_is_one_sentence(tmp_path: Path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    said = ended.stdout.splitlines()
    assert (ended.returncode, len(said)) == (0, 10), ended
    assert all("cannot be written (the disk is full; make room" in line for line in said)
    names = {"safetensors", "torch", "pickle", "png", "text"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.read_text(encoding="utf-8") == "old" for path in tmp_path.iterdir())


def test_what_is_no_trouble_of_the_disk_goes_on(tmp_path: Path):
    for place in (whole, whole_folder):
        with pytest.raises(RuntimeError, match="a bug"), place(tmp_path / "here"):
            raise RuntimeError("a bug")
        with pytest.raises(WriteError), place(tmp_path / "a\0b"):
            pass


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file become larger than 300 bytes meanwhile."""
    resource = pytest.importorskip("resource", reason="Windows limits no file's size")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FORMS = [("diffusers", "xattn"), ("unet", "xattn"), ("kohya", "xattn"), ("embeddings", "words")]


def test_an_export_to_a_full_disk_leaves_nothing(
    model: Diffusion, tmp_path: Path, worn, monkeypatch, capsys
):
    table = model.text.tables[0]
    shift = torch.zeros_like(model._parameters[table])
    shift[5] = 0.1
    patches = {"xattn": model.checked(worn[0]), "words": model.checked(Patch.dense({table: shift}))}
    for name, patch in patches.items():
        patch.save(tmp_path / name)
    monkeypatch.setattr(Export, "load", lambda self, name, **files: model)
    for form, name in FORMS:
        words = ["patch", "export", str(tmp_path / name), "--out", str(tmp_path / "out")]
        words += ["--format", form, *(["--rank", "1"] if form == "kohya" else [])]
        with no_room():
            said = refused(capsys, *words)
        assert f"{tmp_path}/out" in said
        assert "cannot be written (the disk is full; make room" in said
        assert {path.name for path in tmp_path.iterdir()} == {"xattn", "words"}
        assert main(words) == 0, "the control: with room it is written"
        capsys.readouterr()
        assert any((tmp_path / "out").iterdir())
        shutil.rmtree(tmp_path / "out")
