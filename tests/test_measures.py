"""Measures that are named: each against a value from a closed form or a loop written out."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.image import lpips as shipped
from torchmetrics.image.fid import FrechetInceptionDistance

from palimpsest.cli import main
from palimpsest.core.concepts import Concept, ask
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.data import concept_bench
from palimpsest.erase import UCE
from palimpsest.judge import COUNTED, MEASURES, Counting, by_name, open_measure
from palimpsest.judge.fid import Inception
from palimpsest.judge.frechet import Frechet
from palimpsest.judge.m_score import MScore
from palimpsest.judge.ms_ssim import MSSSIM
from palimpsest.judge.networks import AlexNet
from palimpsest.judge.ssim import SSIM
from palimpsest.judge.watermark import Watermark
from palimpsest.methods import Context, Number, Seen, Spec, Task
from palimpsest.metrics import distances, rates
from palimpsest.models.diffusion import Sampling
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.runs.asked import On
from palimpsest.runs.folder import Run
from palimpsest.runs.runner import Runner
from palimpsest.runs.scoring import Panel
from palimpsest.toolbox.inversion import Inversion, first_vectors
from palimpsest.toolbox.soft_tokens import SLOT, embeddings
from palimpsest.world import assets, suite

CAT = Concept("cat", "object")
MARK = {"watermark": "palimpsest watermark"}
PROMPTS = (
    Prompt("a cat", 1, asks={"object": "cat"}),
    *(Prompt("an owl", seed, asks={"object": "owl"}) for seed in (1, 2, 3)),
    *(Prompt("the palimpsest watermark", seed, asks=MARK) for seed in (1, 2)),
)
RUNS = Path(__file__).parent / "fixtures" / "runs"
ORIGINAL, SPM = "original-270e9b45", "spm-church-c002e18f"


def seen(pictures: Tensor, prompts: tuple[Prompt, ...] = PROMPTS, **more) -> Seen:
    """A model's pictures, one for each prompt."""
    at = {prompt: picture for prompt, picture in zip(prompts, pictures, strict=True)}
    return Seen(
        Task((CAT,)), None, prompts, lambda some: torch.stack([at[p] for p in some]), **more
    )


def counted(measure, ours: Seen, theirs: Seen) -> dict[str, Number]:
    """What a measure says of pictures beside the unedited model's."""
    found, before = measure.collect(ours), measure.collect(theirs)
    rows = measure.numbers(ours, found, {"unedited": before}.get)
    assert not measure.numbers(theirs, before, {"unedited": before}.get), "none of itself"
    return {row.name: row for row in rows}


def grey(*levels: float, side: int = 64) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, side, side).clone()


def noise(n: int, side: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=generator(seed))


# --- pictures one by one ---


def test_ssim_of_even_pictures_has_a_closed_form():
    """Without any variance it is (2ab + c)/(a² + b² + c), c = 0.01² (Wang et al. 2004, eq. 6)."""
    a, b = (0.5, 0.2, 0.4, 0.6, 0.3, 0.3), (0.6, 0.2, 0.8, 0.3, 0.3, 0.3)
    by_hand = [(2 * x * y + 1e-4) / (x * x + y * y + 1e-4) for x, y in zip(a, b, strict=True)]
    found = counted(open_measure("ssim"), seen(grey(*a)), seen(grey(*b)))
    assert found["SSIM, concept"].value == pytest.approx(by_hand[0], abs=1e-4)
    others = found["SSIM, others"]
    want = rates.mean(by_hand[1:], [p.cluster for p in PROMPTS[1:]])
    assert (others.value, others.low) == pytest.approx((want.value, want.low), abs=1e-3)
    assert (others.high, others.n, others.spec) == (1.0, 5, "64 px"), "no interval leaves the range"
    assert want.high > 1


def test_ms_ssim_of_even_pictures_is_its_coarsest_scale():
    a, b = grey(*[0.5] * 6, side=176), grey(*[0.4] * 6, side=176)
    found = counted(open_measure("ms_ssim"), seen(a), seen(b))
    by_hand = ((2 * 0.2 + 1e-4) / (0.25 + 0.16 + 1e-4)) ** 0.1333
    assert found["MS-SSIM, others"].value == pytest.approx(by_hand, abs=1e-4)
    small = seen(noise(6, side=175))
    with pytest.raises(PalimpsestError, match="needs 176 px; these are 175 × 175: take ssim"):
        counted(open_measure("ms_ssim"), small, seen(noise(6, side=175, seed=1)))


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made weights under torchvision's names, with those of the head that nobody reads."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save({**AlexNet().state_dict(), "classifier.1.weight": torch.zeros(2, 2)}, file)
    return file


def maps(file: Path, images: Tensor) -> list[Tensor]:
    """AlexNet's five layers of features (Krizhevsky 2014), step by step."""
    w = torch.load(file, weights_only=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, found = (images - mean[:, None, None]) / std[:, None, None], []
    for i, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        weight, bias = w[f"features.{i}.weight"], w[f"features.{i}.bias"]
        x = F.conv2d(x, weight, bias, stride=stride, padding=padding).clamp(min=0)
        found.append(x)
        if i in (0, 3):
            x = F.max_pool2d(x, 3, 2)
    return found


def test_lpips_by_hand(alexnet: Path):
    ours, theirs = noise(6), noise(6, seed=1)
    found = counted(open_measure(f"lpips:{alexnet}"), seen(ours), seen(theirs))["LPIPS, concept"]
    heads = torch.load(
        Path(shipped.__file__).parent / "lpips_models" / "alex.pth", "cpu", weights_only=True
    )
    total = 0.0
    for i, (a, b) in enumerate(
        zip(maps(alexnet, ours[:1]), maps(alexnet, theirs[:1]), strict=True)
    ):
        head, (height, width) = heads[f"lin{i}.model.1.weight"].flatten(), a.shape[-2:]
        for y in range(height):
            for x in range(width):
                u, v = a[0, :, y, x], b[0, :, y, x]
                away = u / (u @ u + 1e-8).sqrt() - v / (v @ v + 1e-8).sqrt()
                total += float(head @ away**2) / (height * width)
    assert found.value == pytest.approx(total, rel=1e-4)
    assert (found.n, found.spec) == (1, "64 px")
    same = counted(open_measure(f"lpips:{alexnet}"), seen(ours), seen(ours.clone()))
    assert same["LPIPS, others"].value == 0


def test_style_by_hand(alexnet: Path):
    ours, theirs = noise(6), noise(6, seed=1)
    measure = open_measure(f"style:{alexnet}")
    found = counted(measure, seen(ours), seen(theirs))["style loss (Gram), concept"]
    total = 0.0
    for a, b in zip(maps(alexnet, ours[:1]), maps(alexnet, theirs[:1]), strict=True):
        n, m = a.shape[1], a.shape[2] * a.shape[3]
        f, g = a[0].reshape(n, m), b[0].reshape(n, m)
        for i in range(n):
            away = f @ f[i] - g @ g[i]  # a row of the difference of the two Gram matrices
            total += float(away @ away) / (4 * n**2 * m**2) / 5
    assert found.value == pytest.approx(total, rel=1e-4)
    same = counted(measure, seen(ours), seen(ours.clone()))["style loss (Gram), others"]
    assert (same.value, same.low, same.n) == (0, 0, 5)


def test_weights_are_read_by_content_and_bad_ones_refused(alexnet: Path, tmp_path: Path):
    whole = torch.load(alexnet, weights_only=True)
    save_file(whole, tmp_path / "same.safetensors")
    ours, theirs = seen(noise(6)), seen(noise(6, seed=1))
    values = [
        counted(open_measure(f"lpips:{file}"), ours, theirs)["LPIPS, others"].value
        for file in (alexnet, tmp_path / "same.safetensors")
    ]
    assert values[0] == values[1]
    del whole["features.6.bias"]
    torch.save(whole, tmp_path / "lacking.pth")
    torch.save({**whole, "features.6.bias": torch.zeros(3)}, tmp_path / "narrow.pth")
    for word, told in (
        ("lpips", r"lpips.*alexnet-owt-7be5be79\.pth \(no file is named\): lpips:FILE"),
        ("style:absent", r"alexnet-owt-7be5be79\.pth \(absent: no such file\): style:FILE"),
        (f"style:{tmp_path / 'lacking.pth'}", r"features\.6\.bias is missing; take torchvision's"),
        (f"lpips:{tmp_path / 'narrow.pth'}", r"narrow\.pth: features\.6\.bias"),
    ):
        with pytest.raises(PalimpsestError, match=told):
            open_measure(word)


def test_a_watermark_by_hand():
    ours = noise(6)
    theirs, moved = ours.clone(), ours.clone()
    moved[5, 0, 0, 0] = (ours[5, 0, 0, 0] + 0.5) % 1
    found = counted(open_measure("watermark"), seen(ours), seen(theirs))
    assert (found["watermark kept"].value, found["watermark kept"].n) == (1.0, 2)
    assert found["watermark moved, largest"].value == found["watermark moved, mean"].value == 0
    found = counted(open_measure("watermark:Palimpsest"), seen(moved), seen(theirs))
    away = abs(round(255 * float(moved[5, 0, 0, 0])) - round(255 * float(ours[5, 0, 0, 0])))
    assert found["watermark kept"].value == 0.5
    assert found["watermark moved, largest"].value == away
    assert found["watermark moved, mean"].value == pytest.approx(away / (3 * 64 * 64) / 2)
    with pytest.raises(PalimpsestError, match="no prompt of the run says 'shutterstock'"):
        open_measure("watermark:shutterstock").collect(seen(ours))


def test_the_clip_score_is_a_hundred_times_the_cosine_and_never_below_nothing(clip):
    prompts = PROMPTS[:4]
    images = noise(4)
    score = open_measure("clip_score", Counting(clip=clip))
    found = {row.name: row for row in score.numbers(
        seen(images, prompts), score.collect(seen(images, prompts)), lambda who: None
    )}  # fmt: skip
    cosines = clip.cosine(images, [p.text for p in prompts]).tolist()
    by_hand = sum(100 * max(c, 0) for c in cosines[1:]) / 3
    assert found["CLIP score (×100), others"].value == pytest.approx(by_hand, abs=1e-3)
    found = {"others": [-0.2, 0.1, 0.1, math.nan]}
    apart = tuple(Prompt(f"owl {k}", k, asks={"object": "owl"}) for k in range(4))
    (row,) = score.numbers(seen(images, apart), found, lambda who: None)
    assert row.value == pytest.approx(20 / 3)
    assert row.high == pytest.approx(20 / 3 + 4.302653 * 10 / 3, rel=1e-5)  # t(0.975, 2)·s/√3
    assert (row.low, row.n, row.missing) == (0.0, 3, 1)
    with pytest.raises(PalimpsestError, match="the run has none"):
        open_measure("clip_score")


# --- sets of pictures ---


def features(n: int, d: int, seed: int, moved: float = 0.5) -> tuple[Tensor, Tensor]:
    """Features of pictures and of their counterparts, alike row by row."""
    g = generator(seed)
    x = torch.randn(n, d, generator=g).double()
    return x, x + 0.5 * torch.randn(n, d, generator=g).double() + moved


def test_the_kernel_distance_by_a_loop():
    x, y = features(6, 4, 0)

    def k(u: Tensor, v: Tensor) -> float:
        return (float(u @ v) / 4 + 1) ** 3

    terms = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
        for i, j in permutations(range(6), 2)
    ]
    assert distances.kernel(x, y) == pytest.approx(sum(terms) / 30)
    assert distances.kernel(x, x) == 0


@pytest.mark.parametrize(("n", "d"), [(60, 8), (60, 61)])
def test_the_frechet_distance_is_torchmetrics(n: int, d: int):
    class Given(torch.nn.Identity):
        num_features = d

    x, y = features(n, d, 1)
    theirs = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert distances.frechet(x, y) == pytest.approx(float(theirs.compute()), rel=1e-4)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_the_jackknife_of_a_mean_is_students_interval():
    x, y = features(12, 1, 2)
    found = distances.jackknifed(lambda a, b: float((b - a).mean()), x, y)
    want = rates.mean((y - x).flatten().tolist())
    assert (found.value, found.low, found.high) == pytest.approx((want.value, want.low, want.high))
    few = distances.jackknifed(distances.kernel, x[:2], y[:2])
    assert math.isnan(few.low)
    assert few.n == 2


@pytest.mark.parametrize("distance", [distances.kernel, distances.frechet])
def test_the_interval_of_a_distance_keeps_its_promise(distance):
    """About 95 of 100 hold what as many pictures give on the average."""
    drawn = [distances.jackknifed(distance, *features(48, 6, seed)) for seed in range(100)]
    middle = sum(rate.value for rate in drawn) / 100
    assert 90 <= sum(rate.low <= middle <= rate.high for rate in drawn) <= 100


def test_the_interval_of_a_distance_knows_of_prompts():
    """Eight prompts say less than 48: they are left out whole, whatever their order."""
    held, alone = 0, 0
    every = []
    for seed in range(60):
        g, of = generator(seed), torch.arange(48) % 8
        x = torch.randn(48, 6, generator=g).double()
        y = x + 2 * torch.randn(8, 6, generator=g).double()[of]
        every.append((x, y, of.tolist()))
    middle = sum(distances.frechet(x, y) for x, y, _ in every) / 60
    for x, y, of in every:
        known = distances.jackknifed(distances.frechet, x, y, of, 0)
        plain = distances.jackknifed(distances.frechet, x, y)
        held += known.low <= middle <= known.high
        alone += plain.low <= middle <= plain.high
    assert held >= 52, "of 60"
    assert alone < held - 10
    assert math.isnan(distances.jackknifed(distances.frechet, x, y, [0, 1] * 24).low)


class Corners:
    """A judge whose features are five pixels."""

    classes: ClassVar = {"object": ("cat", "owl")}
    spec = Spec("corners", "1", 64)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5]

    def read(self, images: Tensor):
        raise NotImplementedError


def test_a_frechet_distance_of_too_few_pictures_is_not_computed():
    judge, prompts = Corners(), PROMPTS[:4]
    ours, theirs = seen(noise(4), prompts), seen(noise(4, seed=1), prompts)
    (row,) = counted(Frechet(judge), ours, theirs).values()
    assert (row.name, row.n) == ("FID on features of corners, others", 3)
    assert math.isnan(row.value)
    assert row.meaning.startswith("not computed: 3 pictures are fewer than the 5 numbers")
    x, y = (judge.features(noise(4, seed=seed)[1:]) for seed in (1, 0))
    (row,) = counted(Frechet(judge, force=True), ours, theirs).values()
    assert row.value == pytest.approx(distances.frechet(x, y))
    judge.spec = replace(judge.spec, name="world judge")
    (row,) = counted(Frechet(judge), ours, theirs).values()
    assert row.name == "world-FID, others", "the world's is its own, and always computed"
    assert row.low <= row.value <= row.high


def test_kid_never_stands_alone_and_needs_features():
    judge, prompts = Corners(), PROMPTS[:4]
    ours, theirs = seen(noise(4), prompts), seen(noise(4, seed=1), prompts)
    (row,) = counted(open_measure("kid", Counting(judge=judge)), ours, theirs).values()
    x, y = (judge.features(noise(4, seed=seed)[1:]) for seed in (1, 0))
    assert row.name == "KID on features of corners, others"
    assert row.value == pytest.approx(distances.kernel(x, y))
    with pytest.raises(PalimpsestError, match="the run's judge has none"):
        open_measure("kid")


def test_inceptions_distances_are_refused_without_their_package():
    with pytest.raises(PalimpsestError, match=r"needs torch-fidelity.*'palimpsest-ml\[fid\]'"):
        open_measure("fid")
    with pytest.raises(PalimpsestError, match="fid:FILE"):
        open_measure("fid:absent.pth")


def test_torch_fidelity_is_asked_for_both_distances_of_whole_sets():
    ours, theirs = (Inception().look(noise(3, 8, seed)) for seed in (0, 1))
    asked = Inception(weights="inception.pth").asked(theirs, ours)
    assert torch.equal(torch.stack(list(map(asked["input1"].__getitem__, range(3)))), ours)
    assert torch.equal(asked["input2"][2], theirs[2])
    assert asked["input1"][0].dtype == torch.uint8
    assert (len(asked["input1"]), asked["kid_subset_size"], asked["kid_subsets"]) == (3, 3, 1)
    assert asked["feature_extractor_weights_path"] == "inception.pth"
    many = Inception().asked(theirs.expand(1, 3, 3, 8, 8)[0], torch.zeros(1200, 3, 1, 1))
    assert (many["kid_subset_size"], many["kid_subsets"]) == (1000, 100)
    assert {*Inception.meanings} == {
        f"{title} (Inception, torch-fidelity){beside}"
        for title in ("FID", "KID")
        for beside in ("", " to gold")
    }
    assert "fewer than the 2048" in Inception().too_few(2047, 2048)


# --- the model itself ---


def test_the_m_score_by_hand(model, tmp_path: Path):
    """The anchors are the unedited model's pictures, also while the edited one is asked."""
    prompts = tuple(CAT.prompts(3))
    own, edited = noise(3), noise(3, seed=1)
    short = Inversion(2, 1e-2, 2, 0, warmup=0, norm=None)
    measure = MScore(inversion=short, pictures=2, seeds=3)
    gold = Patch.load(assets.gold("parachute"))
    ours = replace(seen(edited, prompts), model=model, before=seen(own, prompts).pictures)
    with model.patched(gold):
        found = measure.collect(ours)
        x_0, by_hand = model.encode(own[[0, 2]]), []
        for seed in (0, 1, 2):
            context = Context(seed=seed)
            start = first_vectors(model, ("picture",), 1, context.stream("vectors"))
            v, _ = short(
                model, x_0, ask(SLOT, "object"), start, context=context, label="inverting cat"
            )
            word = embeddings(model, "cat").mean(0)
            by_hand.append(float(v[0] @ word / (v[0].norm() * word.norm())))
    assert found == {"cat": pytest.approx(by_hand, abs=1e-5)}
    plain = measure.collect(replace(ours, pictures=ours.before))
    assert plain != found, "it asks the model as it is"
    (row,) = measure.numbers(ours, found, lambda who: None)
    want = rates.mean(by_hand)
    assert (row.name, row.n) == ("M-Score (reconstructed)", 3)
    assert row.value == pytest.approx(want.value, abs=1e-5)
    assert -1 <= row.low <= row.high <= 1
    assert measure.collect(replace(ours, model=None)) == {}, "pictures alone cannot be asked"
    with pytest.raises(PalimpsestError, match="count it in Python"):
        open_measure("m_score")


# --- by name, on a run ---


def test_measures_of_a_run_are_named_kept_and_told_when_lost(
    tmp_path: Path, alexnet: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(RUNS, tmp_path / "runs")
    run = Run.open(tmp_path / "runs" / SPM)
    assert main(["judge", str(run.folder), "--measures", "ssim", "kid", f"lpips:{alexnet}"]) == 0
    record = run.record()
    assert record.number("SSIM, others").spec.startswith("torchmetrics, Gaussian window of 11 px")
    assert ", 64 px, " in record.number("LPIPS, concept").spec
    assert record.number("LPIPS, others").spec.startswith("AlexNet ")
    assert record.number("KID on features of world judge, others").n == 2
    assert not any(row.name.startswith(("SSIM", "LPIPS", "KID")) for row in record.baseline)
    capsys.readouterr()
    assert main(["judge", str(run.folder)]) == 0
    assert "not counted again, name it: LPIPS: AlexNet" in capsys.readouterr().err
    names = {row.name for row in run.record().numbers}
    assert {"SSIM, others", "SSIM, concept", "KID on features of world judge, others"} <= names
    assert "LPIPS, others" not in names
    before = run.path("run.json").read_bytes()
    scores = run.path("scores.jsonl").stat()
    for word, told in (
        ("rates", "leave it out"),
        ("lpips", "lpips:FILE"),
        ("ms_ssim", "needs 176 px"),
        ("m_score", "count it in Python"),
        ("watermark", "no prompt of the run asks"),
    ):
        assert main(["judge", str(run.folder), "--measures", word]) == 2
        assert told in capsys.readouterr().err
        assert run.path("run.json").read_bytes() == before
        assert run.path("scores.jsonl").stat().st_ino == scores.st_ino, "refused before any looks"


def test_a_measure_itself_says_that_no_command_can_count_it(monkeypatch: pytest.MonkeyPatch):
    alone = {name for name in MEASURES.own if getattr(MEASURES.load(name), "in_python", "")}
    assert alone == {"m_score"}
    assert {*by_name()} == {*MEASURES.own} - {*COUNTED} - alone
    monkeypatch.setattr(SSIM, "in_python", "asks a friend", raising=False)
    with pytest.raises(PalimpsestError, match=r"asks a friend; count it in Python .*SSIM\(\)"):
        open_measure("ssim")


def test_what_cannot_be_counted_is_refused_before_training(judge, tmp_path: Path):
    quick = load_model("world", sampling=Sampling(steps=2, guidance=3.0))
    prompts = [suite.pair(name, "photo", 188) for name in ("parachute", "cat")]
    runner, parachute = Runner(tmp_path, quick, Panel(judge)), suite.concept("parachute", "balloon")
    for measure, told in ((MSSSIM(), "needs 176 px"), (Watermark(), "no prompt of the run asks")):
        with pytest.raises(PalimpsestError, match=told):
            runner.run(parachute, UCE(), On(prompts), [measure], force=True)
        assert [path.name[:8] for path in tmp_path.iterdir() if path.is_dir()] == ["original"]


def test_every_measure_of_ours_says_what_it_counts():
    for name in MEASURES.own:
        assert MEASURES.load(name).meanings
        assert MEASURES.summary(name)


def test_the_list_of_concepts_is_called_ours():
    assert "ours" in concept_bench.NAME
    concepts = concept_bench.concepts()
    assert len({c.name for c in concepts}) == len(concepts) == 30
    assert {c.kind for c in concepts} == {"identity", "object", "style"}


def test_the_m_score_is_counted_while_a_run_is_made(judge, tmp_path: Path):
    quick = load_model("world", sampling=Sampling(steps=2, guidance=3.0))
    prompts = [suite.pair(name, "photo", 188) for name in ("parachute", "cat")]
    short = MScore(inversion=Inversion(1, 1e-2, 1, 0, warmup=0, norm=None), pictures=1)
    runner, parachute = Runner(tmp_path, quick, Panel(judge)), suite.concept("parachute", "balloon")
    run = runner.run(parachute, UCE(), On(prompts), [short], force=True)
    now, before = run.record().number("M-Score (reconstructed)"), run.record().baseline[0]
    assert (now.n, before.n) == (3, 3)
    assert now.value != before.value, "one on the edited model, the other on the unedited"
    assert now.spec.startswith("textual inversion from 'picture', 1 steps of 1 at 0.01, 1 pictures")
