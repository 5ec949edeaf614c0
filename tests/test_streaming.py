"""What is long is worked off in lots: memory does not grow with the number of pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.memory import Peak
from palimpsest.core.prompts import Prompt
from palimpsest.judge import opening
from palimpsest.judge.clip import Clip, ZeroShotJudge
from palimpsest.judge.world import Classifier
from palimpsest.methods import Context, Task
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.imagefolder import gathered
from palimpsest.runs.scoring import Panel, tally
from palimpsest.world import suite

CAT = Concept("cat", "object")


def drawn(root: Path, n: int) -> tuple[Run, list[Prompt]]:
    """A run of so many pictures, as if they had been drawn; they are all one."""
    run = Run(root / f"run-{n}")
    run.folder.mkdir()
    run.update(kind="erase", concepts=(CAT,))
    prompts = [suite.pair("cat" if i % 2 else "owl", "photo", i) for i in range(n)]
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    first = run.path(images.picture_name(prompts[0]))
    first.parent.mkdir()
    images.save_png(picture, first)
    for prompt in prompts[1:]:
        shutil.copyfile(first, run.path(images.picture_name(prompt)))
    run.write_rows("images.jsonl", map(images.row, prompts))
    return run, prompts


def looked(judge: Classifier, clip: Clip, run: Run, prompts: list[Prompt]) -> float:
    """The megabytes that it takes two judges and all measures to look at a run's pictures."""
    panel = Panel(judge, clip, (ZeroShotJudge(clip, opening([CAT], prompts)),))
    with Peak() as peak:
        panel.fit(run, prompts)
        panel.score(run)
        tally(run, Task((CAT,)), prompts, panel.measures).look("run")
    assert len(run.rows("scores.jsonl")) == len(prompts)
    return peak.megabytes


def test_a_thousand_pictures_take_no_more_memory_than_a_hundred(
    judge: Classifier, clip: Clip, tmp_path: Path
):
    few, many = drawn(tmp_path, 128), drawn(tmp_path, 1536)
    looked(judge, clip, *drawn(tmp_path, 64))  # libraries take what they keep
    little = looked(judge, clip, *few)
    whole = 1536 * 3 * 64 * 64 * 4 / 2**20
    assert looked(judge, clip, *many) <= little + whole / 3, f"all at once take {whole:.0f} MB"


@pytest.mark.slow
def test_hundreds_of_pictures_are_drawn_in_the_memory_of_a_few(tmp_path: Path):
    model = load_model("world", sampling=Sampling(steps=1, guidance=1.0, batch=8))

    def peak(n: int) -> float:
        names = {f"{i:04}.png": Prompt(f"an image {i}", i) for i in range(n)}
        with Peak() as found, gathered(model, names, tmp_path / str(n), (), None, Context()):
            pass
        assert len([*(tmp_path / str(n)).glob("*.png")]) == n
        return found.megabytes

    peak(48)  # libraries take what they keep
    little, whole = peak(48), 512 * 3 * 64 * 64 * 4 / 2**20
    assert peak(512) <= little + whole / 3, f"all at once take {whole:.0f} MB"


def test_judging_that_was_broken_off_goes_on(judge: Classifier, tmp_path: Path):
    run, prompts = drawn(tmp_path, 150)
    whole, _ = drawn(tmp_path, 151)
    seen: list[int] = []

    class Tired(Classifier):
        def read(self, images: torch.Tensor):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(len(images))
            return super().read(images)

    tired = Tired(judge.network, judge.heads, judge.spec)
    with pytest.raises(KeyboardInterrupt):
        Panel(tired).score(run)
    assert len(run.rows("scores.jsonl")) == sum(seen) == 128
    seen.clear()
    seen.append(0)
    Panel(tired).score(run)
    assert seen == [0, 22], "what was judged is not judged again"
    assert [row["file"] for row in run.rows("scores.jsonl")] == [
        images.picture_name(p) for p in prompts
    ]
    Panel(judge).score(whole)
    assert run.rows("scores.jsonl") == whole.rows("scores.jsonl")[:150]
