"""The optimisers that training takes its steps by, and the states of theirs that may be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.extras import optional
from palimpsest.core.kinds import Optimizer
from palimpsest.patch.tensor_files import checked_tensor

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter."""
DEVICES = ("cuda",)
"""Where the moments may have 8 bits."""
TABLES = ("qmap1", "qmap2")
"""What bitsandbytes reads a byte by: the same for every parameter."""


def eight_bit(device: torch.device) -> type[torch.optim.Optimizer]:
    """Return Adam with moments of 8 bits (Dettmers et al. 2022, arXiv:2110.02861).

    It decays weights as AdamW does, and keeps 32 bits of tensors with fewer than 4,096 entries.

    Raises:
        PalimpsestError: bitsandbytes cannot be imported, or the device is another one.
    """
    if device.type not in DEVICES:
        raise PalimpsestError(
            f"the optimizer adam8bit computes on CUDA, and the model is on {device}: name "
            "--device cuda, or leave --optimizer out"
        )
    return optional("bitsandbytes", "eightbit").optim.AdamW8bit


def made(
    own: Sequence[Tensor],
    kind: Optimizer,
    *,
    decoupled: bool,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return an optimiser of leaf tensors.

    Args:
        own: what it moves.
        kind: the recipe's own, or `adam8bit` in its place.
        decoupled: whether weight decay is AdamW's.
        lr: learning rate.
        betas: decays of the two averages.
        eps: what is added to the root of the second.
        weight_decay: of the tensors.

    Raises:
        PalimpsestError: as of `eight_bit`.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    if kind == "adam8bit":
        return eight_bit(own[0].device)(list(own), **settings)
    plain = torch.optim.AdamW if decoupled else torch.optim.Adam
    # in one kernel: the same steps in less time, and nothing as large as the parameters between
    return plain(list(own), **settings, fused=True)


def check_state(optimizer: torch.optim.Optimizer, found: Any, own: Sequence[Tensor], steps: int):
    """Refuse the state of an optimiser with other settings, or of other parameters.

    The learning rate is a step's own: every step sets it anew.

    Args:
        optimizer: into which it shall be loaded, fresh.
        found: a `state_dict` from elsewhere.
        own: what it moves.
        steps: taken so far.

    Raises:
        PalimpsestError: saying what is wrong; what is no dictionary raises as Python does.
    """
    (mine,), (theirs,) = optimizer.state_dict()["param_groups"], found["param_groups"]
    if {**theirs, "lr": mine["lr"]} != mine or not found["state"].keys() <= {*mine["params"]}:
        raise PalimpsestError("its optimiser has other settings")
    for place, held in found["state"].items():
        if hasattr(optimizer, "init_state"):
            _check_bytes(flat(held), _begun(optimizer, own[place], place), steps)
        else:
            _check_moments(held, own[place].shape, steps)


def _check_moments(held: Any, shape: torch.Size, steps: int) -> None:
    if held.keys() != {"step", *MOMENTS}:
        raise PalimpsestError("its optimiser is another one")
    if not 0 < float(checked_tensor("the optimiser's step", held["step"], ())) <= steps:
        raise PalimpsestError("its optimiser was at another step")
    for name in MOMENTS:
        checked_tensor(f"the optimiser's {name}", held[name], shape)


def flat(held: Any) -> dict[str, Any]:
    """Return what an optimiser keeps of a parameter without the dictionary some of it lies in."""
    inside = [value for value in held.values() if isinstance(value, dict)]
    outside = {name: value for name, value in held.items() if not isinstance(value, dict)}
    return {name: value for part in (outside, *inside) for name, value in part.items()}


def _begun(optimizer: Any, parameter: Tensor, place: int) -> dict[str, Any]:
    """Return what bitsandbytes keeps of a parameter before its first step, and forget it."""
    optimizer.init_state(optimizer.param_groups[0], parameter, 0, place)
    return optimizer.state.pop(parameter)


def _check_bytes(held: dict[str, Any], begun: dict[str, Any], steps: int) -> None:
    """Refuse moments in bytes, their scales or their tables that are not of this form."""
    if held.keys() != begun.keys():
        raise PalimpsestError("its optimiser is another one")
    for name, mine in begun.items():
        theirs = held[name]
        if name == "step":
            if type(theirs) is not int or not 0 < theirs <= steps:
                raise PalimpsestError("its optimiser was at another step")
        elif mine.dtype != torch.uint8:
            checked_tensor(f"the optimiser's {name}", theirs, mine.shape)
            if name in TABLES and not torch.equal(theirs, mine.cpu()):
                raise PalimpsestError(f"its optimiser's {name} is another table")
        elif type(theirs) is not torch.Tensor or theirs.dtype != torch.uint8:
            raise PalimpsestError(f"its optimiser's {name} are no bytes")
        elif theirs.layout is not torch.strided or theirs.shape != mine.shape:
            raise PalimpsestError(f"its optimiser's {name} is of another form")
