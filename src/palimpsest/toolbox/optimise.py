"""The one training loop: steps, accumulation, clipping, schedule, EMA, progress, resume.

Every random draw of step `k` comes from a generator seeded by (seed, k) alone, so a run that was
killed and resumed equals one that was not. Of n processes each takes the losses of draws of its
own, and the mean of their gradients: as n times `accumulate` does in one.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from palimpsest.core.atomic import whole
from palimpsest.core.errors import PalimpsestError, Settings, WriteError
from palimpsest.core.files import only_component
from palimpsest.methods import Context
from palimpsest.patch.tensor_files import UNREADABLE, checked_tensor, read_pickle
from palimpsest.toolbox.optimizers import check_state, made

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Recipe(Settings):
    """How to optimise; what to optimise is the caller's affair."""

    steps: int
    """Optimisation steps."""
    lr: float
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with decoupled weight decay."""
    weight_decay: float = 0.0
    """Weight decay."""
    beta_2: float = 0.999
    """Adam's decay of the squared gradients' average."""
    epsilon: float = 1e-8
    """What Adam adds to the root of that average."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: held, or a half cosine down to zero."""
    warmup: int = 0
    """Steps of linear warm-up."""
    accumulate: int = 1
    """Losses averaged in one step."""
    clip: float | None = None
    """Largest norm of the gradient, over all parameters together."""
    ema: float | None = None
    """Decay of the exponential moving average of the parameters; None keeps none."""
    summed: bool = False
    """Never clear the gradient: each step takes the sum of all losses' so far."""


@dataclass(frozen=True)
class Trained(Settings):
    """Settings of a method that trains by steps of an optimiser."""

    steps: int = 1000
    """Optimisation steps."""
    lr: float = 1e-5
    """Peak learning rate."""
    least: ClassVar = dict(steps=1, lr=0)


@dataclass(frozen=True)
class Summing(Trained):
    """Settings of a method whose authors' loop never clears the gradient."""

    gradients: Literal["summed", "fresh"] = "summed"
    """What a step takes: the `summed` gradients of all steps so far, since the authors' loop never
    clears them, or its own (`fresh`)."""

    @property
    def recipe(self) -> Recipe:
        """Adam at a constant rate."""
        return Recipe(self.steps, self.lr, summed=self.gradients == "summed")


@dataclass
class Trace:
    """What an optimisation left behind."""

    losses: list[float] = field(default_factory=list)
    """The loss of each step."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Whatever the watcher wrote down; kept over a resume, so JSON-able."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of the parameters, if one was asked for."""

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return len(self.losses)


Loss: TypeAlias = "Callable[[torch.Generator, int], Tensor]"
"""(generator of this step, step from 0) → scalar loss."""
Watch = Callable[[Trace], bool | None]
"""Called after each step, and once before the first; True stops the optimisation."""

CHECKPOINT_SECONDS = 60.0
"""The shortest time between two checkpoints."""
CHECKPOINT_SHARE = 30
"""So many times as long as the last checkpoint took to write, at least: the larger, the rarer."""


def draws(context: Context, step: int, part: int = 0) -> torch.Generator:
    """Return the generator that a loss is given at a step, to know its draws beforehand.

    Args:
        context: its seed, and which of several processes this is.
        step: counted from 0.
        part: which of the losses accumulated in that step, by this process.
    """
    return context.stream("training", step, part_of_all(context, part))


def part_of_all(context: Context, part: int) -> int:
    """Return which of the losses of a step is this process's `part`, among those of all."""
    return part * context.group.size + context.group.rank


def optimise(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    context: Context,
    label: str,
    watch: Watch | None = None,
) -> Trace:
    """Minimise `loss` over `parameters`, in place.

    Args:
        loss: scalar loss of one (micro-)step; it must draw only from the generator it is given.
        parameters: leaf tensors by name; they are changed in place.
        recipe: the optimiser's settings.
        context: seed, progress and checkpoint folder.
        label: names the progress line and the checkpoint.
        watch: looks at the trace after each step; may write notes, and stops by returning True.

    Raises:
        PalimpsestError: nothing to optimise, or the loss is no longer a finite number.
    """
    if not parameters:
        raise PalimpsestError(f"{label}: no parameter is selected, so there is nothing to train")
    run = _Loop(dict(parameters), recipe, context, label)
    with context.progress.task(label, recipe.steps, run.trace.step) as task:
        try:
            while not run.watched(watch) and run.trace.step < recipe.steps:
                with _whole_step():
                    run.step(loss)
                task.advance(1, f"loss {run.trace.losses[-1]:.4f}")
                if context.group.told(run.late):
                    run.checkpoint()
        except KeyboardInterrupt:
            run.write()
            raise
    run.checkpoint()
    return run.trace


@contextmanager
def _whole_step() -> Iterator[None]:
    """Let Ctrl-C wait until the step is done: half a step must not reach a checkpoint."""
    before = signal.getsignal(signal.SIGINT)
    deaf = before == signal.SIG_IGN  # of several processes the first one alone listens
    if deaf or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


class _Loop:
    """The state of one optimisation: parameters, optimiser, average and trace."""

    def __init__(
        self, parameters: dict[str, Tensor], recipe: Recipe, context: Context, label: str
    ) -> None:
        self.parameters, self.recipe, self.context, self.label = parameters, recipe, context, label
        self.optimizer = made(
            [*parameters.values()],
            context.optimizer,
            decoupled=recipe.optimizer == "adamw",
            lr=recipe.lr,
            betas=(0.9, recipe.beta_2),
            eps=recipe.epsilon,
            weight_decay=recipe.weight_decay,
        )
        self.trace = Trace()
        if recipe.ema is not None:
            self.trace.average = {name: p.detach().clone() for name, p in parameters.items()}
        self.saved, self.took = time.monotonic(), 0.0
        self._begin()

    @property
    def path(self) -> Path | None:
        folder = self.context.folder
        name = only_component(self.label.replace(" ", "-"))
        return folder and folder / f"{name}.checkpoint"

    def step(self, loss: Loss) -> None:
        recipe, step = self.recipe, self.trace.step
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * _factor(recipe, step)
        if not recipe.summed:
            self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(recipe.accumulate):
            value = loss(draws(self.context, step, part), step) / recipe.accumulate
            value.backward()
            total += float(value.detach())
        total = self.context.group.mean(total)
        if not math.isfinite(total):
            raise PalimpsestError(
                f"{self.label}: the loss is {total} at step {step}; lower the learning rate"
            )
        self.context.group.average(self.parameters.values())
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), recipe.clip)
        self.optimizer.step()
        self.trace.losses.append(total)
        self._average()
        self.context.log({"label": self.label, "step": self.trace.step, "loss": total})

    def watched(self, watch: Watch | None) -> bool:
        """Let the watcher see this step once, also over an interruption; whether it says stop."""
        notes = self.trace.notes
        if watch and notes.get("watched") != self.trace.step:
            stop = bool(watch(self.trace))
            notes.update(watched=self.trace.step, stopped=stop)
            notes = self.trace.notes = self.context.group.told(lambda: notes)
        return bool(notes.get("stopped"))

    def _average(self) -> None:
        if self.recipe.ema is None:
            return
        decay = min(self.recipe.ema, self.trace.step / (self.trace.step + 10))
        average = [self.trace.average[name] for name in self.parameters]
        torch._foreach_lerp_(average, [p.detach() for p in self.parameters.values()], 1 - decay)

    def late(self) -> bool:
        """Return whether it is time for a checkpoint."""
        since = time.monotonic() - self.saved
        return bool(self.path) and since > max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * self.took)

    def checkpoint(self) -> None:
        """Write a checkpoint, if all processes are where the first one is."""
        self.context.group.agree(self.parameters.values())
        self.write()

    def write(self) -> None:
        """Write a checkpoint; of several processes the first one does."""
        if self.path is None or self.context.group.rank:
            return
        start = time.monotonic()
        state = {
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.trace.average,
            "gradients": {n: p.grad for n, p in self.parameters.items() if self.recipe.summed},
            "losses": self.trace.losses,
            "notes": self.trace.notes,
        }
        with whole(self.path) as part:
            try:
                torch.save(state, part)
            except RuntimeError as error:  # how torch says that the disk is full
                reason = str(error).splitlines()[0]
                raise WriteError(
                    f"{self.path}: cannot be written; is the disk full? ({reason})"
                ) from error
        self.saved = time.monotonic()
        self.took = self.saved - start

    def _begin(self) -> None:
        """Begin where the last checkpoint stands; all processes where the first one does.

        Raises:
            PalimpsestError: one does not read the checkpoint that the first one has read.
        """
        group = self.context.group
        if group.rank == 0:
            self._resume()
        step = group.told(lambda: self.trace.step)
        if group.rank:
            self._resume()
        if (own := self.trace.step) != step:
            raise PalimpsestError(
                f"{self.path}: process {group.rank} is at step {own} and process 0 at {step}; let "
                "all machines see the runs by the same path"
            )
        group.same(self.parameters.values())

    def _resume(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            state = self._checked(read_pickle(self.path))
        except (PalimpsestError, *UNREADABLE) as error:
            why = str(error).removeprefix(f"{self.path}: ").split("\n")[0]
            self.context.tell(
                f"{self.path}: no checkpoint of this training, which begins anew ({why})"
            )
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
            for name, average in self.trace.average.items():
                average.copy_(state["average"][name])
            for name, gradient in state["gradients"].items():
                own = self.parameters[name]
                own.grad = None if gradient is None else gradient.to(own)
        self.optimizer.load_state_dict(state["optimizer"])
        self.trace.losses, self.trace.notes = state["losses"], state["notes"]

    def _checked(self, state: Any) -> dict[str, Any]:
        """Return what a checkpoint holds, if all of it is this training's.

        Raises:
            PalimpsestError: saying what is not; what is no dictionary raises as Python does.
        """
        shapes = {name: p.shape for name, p in self.parameters.items()}
        grads = {n: g for n, g in state["gradients"].items() if g is not None}
        averaged = shapes if self.recipe.ema is not None else {}
        summed = shapes.keys() if self.recipe.summed else set()
        wanted = (shapes, averaged, {name: shapes[name] for name in grads})
        for found, own in zip((state["parameters"], state["average"], grads), wanted, strict=True):
            if found.keys() != own.keys() or state["gradients"].keys() != summed:
                raise PalimpsestError("it is of other parameters")
            for name, shape in own.items():
                checked_tensor(name, found[name], shape)
        losses, notes = state["losses"], state["notes"]
        known = isinstance(notes, dict) and json.dumps(notes)
        if not known or not all(type(x) is float and math.isfinite(x) for x in losses):
            raise PalimpsestError("its losses or its notes are none")
        if type(losses) is not list or len(losses) > self.recipe.steps:
            raise PalimpsestError("it is of more steps")
        check_state(self.optimizer, state["optimizer"], [*self.parameters.values()], len(losses))
        return state


def _factor(recipe: Recipe, step: int) -> float:
    """Return the learning rate of `step` as a share of its peak."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
