"""How much memory a method takes, counted from shapes on the meta device: nothing is computed.

Every tensor that the networks make is a shape there, and its bytes count as long as it lives: so a
count knows what autograd keeps, what is made and dropped on the way, and what `--memory low` saves.
It leaves out what a device takes for itself: its context, the workspace of its convolutions, and
what its allocator cannot fit together.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palimpsest.core.demand import Demand
from palimpsest.core.kinds import Optimizer
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning, TokenSlots
from palimpsest.toolbox.attention import attention_maps
from palimpsest.toolbox.checkpointing import checkpointed
from palimpsest.toolbox.lora import lora

GIB = 2**30
SHIFT, GRADIENT = 4, 4
"""Bytes of an entry that moves, in float32: its shift, and its gradient."""
MOMENTS = {"own": 8.0, "adam8bit": 2 + 2 * 4 / 256}
"""Bytes of its two averages, by the optimiser: of 8 bits with a scale for every 256."""
ENOUGH = 2
"""Rows that show what a step takes row by row."""
WIDE = 2
"""Predictions of a latent that is sampled with guidance."""


@dataclass(frozen=True)
class Count:
    """The memory of one method on one model, in GiB."""

    networks: float
    """The networks that lie on the device."""
    moved: float
    """What is trained, with the optimiser's moments."""
    training: float
    """The most at once while it trains, networks and what is trained included."""
    pictures: float
    """The most at once while pictures are drawn of the edited model, encoded or decoded, networks
    included."""
    host: float
    """What is made of the edit on the CPU, whatever the device."""

    @property
    def peak(self) -> float:
        """The most at once."""
        return max(self.training, self.pictures)


CARDS = (8, 12, 16, 24)
"""Memory of usual graphics cards, in GB."""
FREE = 0.9
"""Share of a card's memory that is left for what is counted here."""


def fits(peak: float) -> list[int]:
    """Return the cards that so many GiB fit on."""
    return [card for card in CARDS if peak <= FREE * card]


class Live(TorchDispatchMode):
    """Adds up the bytes of the tensors that operators make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors as counted already, so that views of them add nothing."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}


@contextmanager
def _fused() -> Iterator[None]:
    """Compute attention as a device's fused kernels do, which keep no attention matrix."""
    plain = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *args: Any, **how: Any):
        if attn_mask is not None:
            return plain(q, k, v, attn_mask, *args, **how)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def count(model: Diffusion, method: Any, optimizer: Optimizer = "own") -> Count:
    """Count the memory of a method on a model of the meta device, with `model.memory`.

    Args:
        model: as of `true_shape`, or any other whose tensors are on the meta device.
        method: an eraser or a recovery, with its own batch; `demand` says what a step holds.
        optimizer: what its training takes its steps by.
    """
    demand: Demand = method.demand(model)
    if model.memory == "low":  # no row of a batch adds to the one before it
        demand = replace(demand, graded=min(demand.graded, ENOUGH))
    moves = method.moves(model)
    networks, away = _networks(model, moves, demand)
    pictures = _pictures(model, model.memory, model.sampling.batch, demand.encoded)
    entries, training = _training(model, model.memory, tuple(moves.items()), demand)
    spare = model.memory == "low"
    each = SHIFT + MOMENTS[optimizer] + GRADIENT * demand.summed + demand.beside
    each += 0 if spare else demand.inner
    each *= demand.graded > 0
    once = networks + max(away, demand.other + entries * each + training)
    under = networks + pictures + sum(method.changes(model).values()) * model.dtype.itemsize
    host = sum(moves.values()) * max(SHIFT, demand.host)
    sizes = (size / GIB for size in (networks, entries * each, once, under, host))
    return Count(*sizes)


def _networks(model: Diffusion, moves: dict[str, int], demand: Demand) -> tuple[int, int]:
    """Return the bytes of the networks that lie on the device while it trains or draws.

    And those of the largest of the others, which is there while it embeds prompts.
    """
    trained = {name.partition(".")[0] for name in moves}
    leaves = model.memory == "low" and not demand.prompts
    stay, away = 0, 0
    for part, network in model.networks_by_name.items():
        size = sum(p.nbytes for p in network.parameters())
        if leaves and part.startswith("text_encoder") and part not in trained:
            away = max(away, size)
        else:
            stay += size
    return stay, away


def _most(model: Diffusion, work: Callable[[], Any], known: Iterable[Tensor] = ()) -> int:
    """Return the most bytes that live at once beyond the networks' and those of known tensors."""
    live = Live()
    live.know(chain(known, *(n.parameters() for n in model.networks_by_name.values())))
    with _fused(), live:
        work()
    return live.most


@lru_cache(maxsize=64)
def _pictures(model: Diffusion, memory: str, n: int, encoded: int) -> int:
    """Return what n pictures take that are drawn at once, decoded with as many as are encoded."""

    @torch.no_grad()
    def work() -> None:
        model.eps(*_inputs(model, n * WIDE))
        several = max(n, encoded)
        model.decode(torch.empty(several, *model.latents.shape, device="meta"))
        if encoded:
            model.encode(torch.empty(several, 3, model.side, model.side))

    return _most(model, work)


@lru_cache(maxsize=64)
def _training(
    model: Diffusion, memory: str, moves: tuple[tuple[str, int], ...], demand: Demand
) -> tuple[int, int]:
    """Return the entries that are trained, and what a step takes besides them."""
    trained = _trained(model, dict(moves))
    step = partial(_step, model, trained, demand)
    most = _most(model, step, trained.values()) if demand.graded else 0
    return sum(p.numel() for p in trained.values()), most


def _inputs(model: Diffusion, n: int) -> tuple[Tensor, Tensor, Conditioning]:
    """Return n latents, times and prompts."""
    x = torch.empty(n, *model.latents.shape, device="meta")
    ids = torch.zeros(n, model.text.window, dtype=torch.long, device="meta")
    with torch.no_grad():
        cond = model.embed_ids(ids)
    return x, torch.zeros(n, dtype=torch.long, device="meta"), cond


def _trained(model: Diffusion, moves: dict[str, int]) -> dict[str, Tensor]:
    """Return what is trained in float32: whole shifts, or as many rows as factors have entries."""
    found = {}
    for name, entries in moves.items():
        shape = model.weight(name).shape
        whole = entries >= shape.numel()
        own = shape if whole else (len(model.weight(name)), -(-entries // shape[0]))
        found[name] = torch.empty(own, device="meta", requires_grad=True)
    return found


def _step(model: Diffusion, trained: dict[str, Tensor], demand: Demand) -> None:
    """Take one step: predictions with gradient and without, and the backward pass."""
    with _student(model, trained, demand) as student:
        if demand.plain:
            with torch.no_grad():
                student.still().eps(*_inputs(model, demand.plain))
        with checkpointed(model) if demand.again else nullcontext():
            _loss(student, demand).backward()


@contextmanager
def _student(model: Diffusion, trained: dict[str, Tensor], demand: Demand) -> Iterator[Diffusion]:
    """Yield the view under training: with a LoRA, with shifts, or as it is."""
    if demand.rank:
        with lora(model, demand.rank, torch.Generator()):
            yield model
        return
    if not trained:
        yield model
        return

    def overlay() -> dict[str, Tensor]:
        return {name: _shifted(model.weight(name), part) for name, part in trained.items()}

    yield model.overlaid(overlay)


def _shifted(weight: Tensor, part: Tensor) -> Tensor:
    """Return a weight with a shift of its own shape, or with a product of factors."""
    if part.shape != weight.shape:
        rest = torch.empty(part.shape[1], weight[0].numel(), device="meta")
        part = (part @ rest).reshape(weight.shape)
    return (weight.float() + part).to(weight.dtype)


def _loss(student: Diffusion, demand: Demand) -> Tensor:
    """Return a loss of all predictions or maps that are differentiated together."""
    x, t, cond = _inputs(student, demand.graded)
    if demand.prompts:
        cond = _graded_prompts(student, demand)
    if demand.maps:
        wanted = torch.ones(demand.graded, student.text.window, dtype=torch.bool)
        maps = attention_maps(student, x, t, cond, wanted)
        return torch.stack([A.square().sum() for A in maps.values()]).sum()
    return student.eps(x, t, cond).square().mean()


def _graded_prompts(student: Diffusion, demand: Demand) -> Conditioning:
    """Return prompts with a vector that is trained in place of a token, or of a trained encoder."""
    n, own = demand.prompts, student.text
    ids = torch.zeros(n, own.window, dtype=torch.long, device="meta")
    where = torch.zeros(n, own.window, dtype=torch.bool)
    where[:, 1] = True
    width = sum(student.weight(name).shape[1] for name in own.tables)
    vectors = torch.empty(n, width, device="meta", requires_grad=True)
    cond = student.embed_ids(ids, TokenSlots(where, vectors))
    return cond[torch.arange(demand.graded) % n]
