"""A picture depends on its own prompt and seed, and on nothing that is drawn beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from methods import SMALL

from palimpsest.core.progress import Silent
from palimpsest.core.prompts import Prompt
from palimpsest.erase import ERASERS
from palimpsest.methods import Context
from palimpsest.models.rows import in_calls, rows_a_call
from palimpsest.runs import images
from palimpsest.world import suite

WORDS = ("a parachute", "a church in van gogh style", "mira voss", "a kite", "")
PROMPTS = [Prompt(text, seed, guidance=w) for seed, (text, w) in enumerate(
    zip(WORDS, (None, 1.0, 7.5, 0.0, None), strict=True)
)]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(model):
    return model.with_sampling(replace(model.sampling, steps=2))


@pytest.fixture(scope="module")
def together(drawn) -> torch.Tensor:
    return drawn.generate(PROMPTS)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_pictures_do_not_depend_on_the_size_of_the_batch(drawn, together, batch: int):
    view = drawn.with_sampling(replace(drawn.sampling, batch=batch))
    assert torch.equal(view.generate(PROMPTS), together)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_picture_alone_is_the_same_as_beside_others(drawn, sampler: str):
    view = drawn.with_sampling(replace(drawn.sampling, sampler=sampler))
    every = view.generate(PROMPTS[::-1]).flip(0)
    for prompt, image in zip(PROMPTS, every, strict=True):
        assert torch.equal(view.generate([prompt])[0], image), prompt


def test_a_picture_under_a_hook_is_the_same_alone(drawn):
    """Its adapters are opened row by row; a call of one size cuts the openings, too."""
    concept = replace(suite.concept("parachute"), anchor="sky")
    kind = ERASERS.load("spm")
    method = kind(**kind.presets["world"]).changed(SMALL["spm"])
    patch = method(drawn, concept, context=Context()).patch
    assert patch.hook is not None
    with drawn.patched(patch):
        every = drawn.generate(PROMPTS)
        for prompt, image in zip(PROMPTS, every, strict=True):
            assert torch.equal(drawn.generate([prompt])[0], image), prompt


def test_the_judge_says_the_same_of_a_picture_alone(judge, together):
    every, one = judge.read(together), judge.read(together[1:2])
    for kind in every.labels:
        assert one.confidence[kind][0] == every.confidence[kind][1]
        assert one.labels[kind][0] == every.labels[kind][1]


def test_an_erasure_does_not_depend_on_how_many_pictures_are_made_at_once(model):
    kind = ERASERS.load("esd")
    method = kind(**kind.presets["world"]).changed(
        {"steps": 3, "latents.batch": 2, "latents.source": "frozen", "latents.steps": 4}
    )
    alone, many = (
        method(
            model.with_sampling(replace(model.sampling, batch=batch)),
            suite.concept("parachute"),
            context=Context(),
        ).patch
        for batch in (2, 32)
    )
    assert alone is not None
    assert many is not None
    assert alone.digest() == many.digest()


def test_calls_have_one_size_and_rows_know_none_of_their_neighbours():
    """The control: of what hangs on the number of rows, every row is told the same one."""
    sizes: list[int] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x + len(x)

    for n in (1, 2, 16, 17, 40):
        x = torch.arange(float(n))
        assert torch.equal(in_calls(call, 16, x), x + 16)
    assert set(sizes) == {16}
    assert not torch.equal(
        in_calls(call, None, torch.zeros(3)), in_calls(call, None, torch.zeros(4))[:3]
    )


def test_large_latents_are_computed_a_picture_at_a_time():
    assert rows_a_call(torch.zeros(1, 4, 64, 64)) == 2
    assert rows_a_call(torch.zeros(1, 4, 16, 16)) == 8
    assert rows_a_call(torch.zeros(1, 3, 512, 512), (64, 64)) == 2
    assert rows_a_call(torch.zeros(1, 4, 16, 16, device="meta")) is None


def test_a_broken_batch_is_drawn_again_whole(drawn, tmp_path: Path, monkeypatch):
    """So that going on is exact where rows do know their neighbours, as on a GPU."""
    view = drawn.with_sampling(replace(drawn.sampling, batch=2))
    files = [(tmp_path / f"{i}.png", prompt) for i, prompt in enumerate(PROMPTS)]
    with Silent().task("", 5) as task:
        images.draw(view, files, task)
    before = [path.read_bytes() for path, _ in files]
    files[2][0].unlink()
    asked: list[int] = []
    generate = type(view).generate
    monkeypatch.setattr(
        type(view), "generate", lambda self, p, *a: asked.append(len(p)) or generate(self, p, *a)
    )
    stamp = files[3][0].stat().st_mtime_ns
    with Silent().task("", 1) as task:
        images.draw(view, files, task)
    assert asked == [2], "the batch of the missing picture, and no other"
    assert [path.read_bytes() for path, _ in files] == before
    assert files[3][0].stat().st_mtime_ns == stamp, "what is there is not written again"
