"""Train an image classifier on folders of pictures, to judge by.

The recipe is that of SRS-ME's classifiers: a pretrained ResNet, 70 % of the pictures to learn from
and 30 % to test on, 20 epochs of SGD with momentum .9 at a cyclic rate of up to 1e-2.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import transformers

from palimpsest.core.atomic import whole, whole_folder, write_text
from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.kinds import Kind
from palimpsest.core.lazily import no_grad
from palimpsest.core.streams import stream
from palimpsest.data.images import pictures_in, read_picture
from palimpsest.judge.hf import AT_ONCE, before, found, last, processor_of
from palimpsest.methods import Context
from palimpsest.metrics.rates import Rate, wilson
from palimpsest.models.loading import moved, or_refused
from palimpsest.patch.tensor_files import UNREADABLE, read_pickle

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 224
"""Pictures are resized to it where nobody says otherwise, in pixels."""
HELD_OUT = 0.3
"""The share of each class that is tested on."""
FEWEST = 4
"""A class of fewer pictures is refused."""
SMALL: dict[str, Any] = {
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
"""The ResNet that is trained where there is no base: 1.2 M parameters."""
CYCLE = 2
"""Epochs in which the learning rate rises, and in which it falls (Smith 2017 takes 2 to 10)."""


@dataclass(frozen=True)
class Recipe(Settings):
    """How a classifier is trained."""

    least: ClassVar = {"epochs": 1, "batch": 2, "size": 8}
    above: ClassVar = {"lr": 0}

    base: str | None = None
    """An image classifier or a backbone to begin from: a folder of Transformers or a Hub id, such
    as `microsoft/resnet-18` or `microsoft/resnet-50`, which are SRS-ME's. Without one a small
    ResNet with random weights is trained whole, which wants more pictures."""
    train: Literal["head", "whole"] | None = None
    """What is trained: the last layer alone, as SRS-ME does for styles, or the whole network, as
    for objects. When left out, `head` of a base and `whole` without one."""
    kind: Kind = "object"
    """What sort of thing the classes are; kept with the classifier as `palimpsest_kind`."""
    size: int | None = None
    """Height and width of the pictures that it learns from and reads, in pixels; the base's own
    when left out, and 224 without one."""
    epochs: int = 20
    """How often each picture is learnt from."""
    lr: float = 1e-2
    """Peak learning rate; every four epochs it rises from a tenth of that and falls back."""
    batch: int = 64
    """Pictures a step, at most."""
    seed: int = 0
    """Fixes which pictures are held out, the first weights, their order and their flips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base is None and self.train == "head":
            raise PalimpsestError("--train head needs a --base whose other layers have learnt")

    @property
    def part(self) -> str:
        """What is trained."""
        return self.train or ("head" if self.base else "whole")


@dataclass(frozen=True)
class Shown:
    """Pictures by class, as a classifier takes them before they are normalised."""

    images: Tensor
    """(n, 3, height, width) bytes."""
    labels: Tensor
    """The number of each one's class."""
    names: tuple[str, ...]
    """The classes."""

    def digest(self, recipe: Recipe) -> str:
        """A digest of all that decides how a training ends."""
        settings = [getattr(recipe, field.name) for field in fields(Recipe)]
        sha = hashlib.sha256(repr((settings, self.names, self.labels.tolist())).encode())
        sha.update(self.images.numpy().tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class Confusion:
    """What a classifier says of the pictures that it was not trained on."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row a class, in it how many of its pictures were called by each name."""

    @property
    def accuracy(self) -> Rate:
        """The share of all that are named right."""
        return wilson(sum(r[i] for i, r in enumerate(self.counts)), sum(map(sum, self.counts)))

    @property
    def by_class(self) -> list[Rate]:
        """The share of each class's pictures that are named right."""
        return [wilson(row[i], sum(row)) for i, row in enumerate(self.counts)]

    def table(self) -> str:
        """Return a CSV: a row a class, then all together, with counts, shares and intervals."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["shown", *self.names, "n", "accuracy", "low", "high"])
        sums = [sum(column) for column in zip(*self.counts, strict=True)]
        every = zip(
            (*self.names, ""), (*self.counts, sums), (*self.by_class, self.accuracy), strict=True
        )
        for name, row, rate in every:
            ends = [f"{x:.4f}" for x in (rate.value, rate.low, rate.high)]
            rows.writerow([name, *row, rate.n, *ends])
        return text.getvalue()


def train(folder: Path, out: Path, recipe: Recipe, context: Context, device: str) -> Confusion:
    """Train a classifier, and write it as `save_pretrained` does, with `confusion.csv`.

    After every epoch its state is kept beside `out` until it is done; a killed training goes on
    from there and comes to the same end.

    Args:
        folder: contains a folder of pictures for each class, which is named after it.
        out: the folder to write.
        recipe: how.
        context: shows progress, and tells which pictures cannot be read.
        device: where.

    Raises:
        PalimpsestError: too few classes or pictures, or a base that is none.
    """
    files = classes_in(folder)
    model, processor = begin(recipe, tuple(files), device)
    shown = gather(files, processor, context)
    learn, held = split(shown.labels, recipe.seed)
    learner = (Head if recipe.part == "head" else Whole)(model, processor, shown, context)
    state = State(out.with_name(f".{out.name}.checkpoint"), shown.digest(recipe))
    fit(learner, learn, recipe, context, state)
    found = confusion(learner, held)
    with whole_folder(out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
        write_text(part / "confusion.csv", found.table())
    state.path.unlink(missing_ok=True)
    return found


# --- pictures ---


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures of each class, by the name of its folder.

    Raises:
        PalimpsestError: no such folder, fewer than two classes, or fewer than four pictures of one.
    """
    if not folder.is_dir():
        raise PalimpsestError(f"{folder}: no such folder of pictures by class")
    own = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(own) < 2:
        raise PalimpsestError(
            f"{folder}: needs two folders of pictures or more, each named after its class"
        )
    files = {f.name: pictures_in(f) for f in own}
    _enough({name: len(found) for name, found in files.items()})
    return files


def _enough(counts: Mapping[str, int]) -> None:
    for name, n in counts.items():
        if n < FEWEST:
            raise PalimpsestError(
                f"the class {name!r} has {n} pictures that can be read; it needs {FEWEST} or more"
            )


def gather(files: Mapping[str, Sequence[Path]], processor: Any, context: Context) -> Shown:
    """Read pictures by class, each cut and resized as the judge will do it.

    Raises:
        PalimpsestError: a class keeps too few of them, or they come out in several sizes.
    """
    images, labels = [], []
    with context.progress.task("pictures", sum(map(len, files.values()))) as task:
        for k, own in enumerate(files.values()):
            for file in own:
                task.advance()
                try:
                    image = read_picture(file)
                except PalimpsestError as error:
                    context.tell(f"{error}; skipped")
                    continue
                raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")
                images.append(raw["pixel_values"][0].to(torch.uint8))
                labels.append(k)
    _enough({name: labels.count(k) for k, name in enumerate(files)})
    if len({image.shape for image in images}) > 1:
        raise PalimpsestError(
            "the base keeps the form of pictures, and these have several: cut "
            "them to one, or take another --base"
        )
    return Shown(torch.stack(images), torch.tensor(labels), tuple(files))


def split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return which pictures are learnt from and which are held out: a share of every class."""
    learn, held = [], []
    for k in range(int(labels.max()) + 1):
        own = (labels == k).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=stream(seed, "held out", k))]
        cut = round(HELD_OUT * len(own))
        held.append(own[:cut])
        learn.append(own[cut:])
    return torch.cat(learn), torch.cat(held)


# --- the classifier ---


def begin(recipe: Recipe, names: Sequence[str], device: str) -> tuple[Any, Any]:
    """Return a classifier whose last layer has learnt nothing, and its processor.

    Raises:
        PalimpsestError: the base is none, or lacks other weights than those of the last layer.
    """
    labels = dict(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    with torch.random.fork_rng():
        torch.manual_seed(stream(recipe.seed, "weights").initial_seed())
        model, processor = (_based if recipe.base else _new)(recipe, labels)
        last(model).reset_parameters()
    model.config.palimpsest_kind = recipe.kind
    return moved(model.requires_grad_(recipe.part == "whole"), device, "the base"), processor


def _new(recipe: Recipe, labels: dict[str, Any]) -> tuple[Any, Any]:
    config = transformers.ResNetConfig(**SMALL, **labels)
    side = recipe.size or SIDE
    return transformers.ResNetForImageClassification(config), transformers.ViTImageProcessorPil(
        size={"height": side, "width": side}
    )


def _based(recipe: Recipe, labels: dict[str, Any]) -> tuple[Any, Any]:
    base = str(recipe.base)
    place, given = found(base)
    with or_refused(base, "a folder nor a Hub id of an image classifier or a backbone"):
        how = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            place, **labels, **how, **given
        )
        processor = processor_of(place, **given)
    head = next(name for name, layer in model.named_modules() if layer is last(model))
    wrong = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    lacking = [key for key in (*info["missing_keys"], *wrong) if not key.startswith(f"{head}.")]
    if lacking:
        raise PalimpsestError(f"{base}: no base of a classifier; its weights lack {lacking[0]}")
    for what in ("size", "crop_size"):
        own = getattr(processor, what, None)
        if recipe.size and own:
            setattr(processor, what, {key: recipe.size for key, side in dict(own).items() if side})
    return model, processor


class Whole:
    """All of a classifier learns."""

    def __init__(self, model: Any, processor: Any, shown: Shown, context: Context) -> None:
        self.model, self.processor, self.shown, self.part = model, processor, shown, model

    def logits(self, index: Tensor, flips: Tensor) -> Tensor:
        """Return what it makes of pictures, some of them mirrored: (n, classes)."""
        return self.model(pixel_values=self.pixels(index, flips)).logits

    def pixels(self, index: Tensor, flips: Tensor) -> Tensor:
        """Return pictures normalised, some of them mirrored."""
        arrays = self.shown.images[index].permute(0, 2, 3, 1).numpy()
        ready = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        x = self.processor(list(arrays), input_data_format="channels_last", **ready)["pixel_values"]
        x = torch.where(flips[:, None, None, None], x.flip(-1), x)
        return x.to(self.model.device)


class Head(Whole):
    """Only the last layer learns: what it is given of each picture is computed once."""

    def __init__(self, model: Any, processor: Any, shown: Shown, context: Context) -> None:
        super().__init__(model.eval(), processor, shown, context)
        self.part, n, ways = last(model).requires_grad_(), len(shown.labels), []
        with context.progress.task("features", 2 * n) as task, torch.no_grad():
            for way in (False, True):
                for index in torch.arange(n).split(AT_ONCE):
                    ways.append(before(model, self.pixels(index, torch.tensor([way]))).cpu())
                    task.advance(len(index))
        self.given = torch.cat(ways).unflatten(0, (2, n))

    def logits(self, index: Tensor, flips: Tensor) -> Tensor:
        """Return what the layer makes of pictures, likewise."""
        return self.part(self.given[flips.long(), index].to(self.model.device))


# --- training ---


@dataclass(frozen=True)
class State:
    """Where a training's state lies after each of its epochs, and which training's that is."""

    path: Path
    key: str

    def read(self, tell: Callable[[str], None], **parts: Any) -> int:
        """Take over the state that lies there, if it is this training's; the epochs it has had."""
        try:
            state = read_pickle(self.path) if self.path.exists() else {}
            if state.get("of") != self.key:
                return 0
            for name, part in parts.items():
                part.load_state_dict(state[name])
            return state["epochs"]
        except (PalimpsestError, *UNREADABLE) as error:
            tell(f"{self.path}: cannot be gone on from, so the training begins anew ({error})")
            return 0

    def write(self, epochs: int, **parts: Any) -> None:
        """Keep the state."""
        with whole(self.path) as own:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"of": self.key, "epochs": epochs, **states}, own)


def fit(learner: Whole, learn: Tensor, recipe: Recipe, context: Context, state: State) -> None:
    """Train by SGD with momentum at a cyclic rate; each epoch shows every picture once.

    Raises:
        PalimpsestError: the loss is no longer a finite number.
    """
    labels, steps = learner.shown.labels, -(-len(learn) // recipe.batch)
    own = [p for p in learner.part.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(own, recipe.lr, momentum=0.9)
    rate = torch.optim.lr_scheduler.CyclicLR(
        sgd, recipe.lr / 10, recipe.lr, step_size_up=CYCLE * steps, cycle_momentum=False
    )
    parts = {"part": learner.part, "sgd": sgd, "rate": rate}
    done = state.read(context.tell, **parts)
    learner.part.train()
    shown = context.progress.task("training", recipe.epochs * steps, done * steps)
    with torch.random.fork_rng(), shown as task:
        for epoch in range(done, recipe.epochs):
            g = stream(recipe.seed, "epoch", epoch)
            order = learn[torch.randperm(len(learn), generator=g)]
            torch.manual_seed(g.initial_seed())  # a base may have dropout
            for index in order.tensor_split(steps):
                flips = torch.rand(len(index), generator=g) < 0.5
                logits = learner.logits(index, flips)
                loss = torch.nn.functional.cross_entropy(logits, labels[index].to(logits.device))
                if not loss.isfinite():
                    raise PalimpsestError(f"the loss is {loss:g} in epoch {epoch + 1}; lower --lr")
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                rate.step()
                task.advance(1, f"loss {loss:.3f}")
            state.write(epoch + 1, **parts)
    learner.part.eval()


@no_grad
def confusion(learner: Whole, held: Tensor) -> Confusion:
    """Return what a classifier says of held-out pictures."""
    plain, n = torch.tensor([False]), len(learner.shown.names)
    said = torch.cat([learner.logits(i, plain).argmax(-1).cpu() for i in held.split(AT_ONCE)])
    counts = (learner.shown.labels[held] * n + said).bincount(minlength=n * n).unflatten(0, (n, n))
    return Confusion(learner.shown.names, tuple(map(tuple, counts.tolist())))
