"""LoRAs: factors trained over any weights, or PEFT's on a model's attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import peft
import torch

from palimpsest.models.diffusion import Diffusion

if TYPE_CHECKING:
    from torch import Tensor

Factors: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""(up, down) by canonical name, (out, rank) and (rank, in)."""


def untrained(
    weights: Mapping[str, Tensor],
    rank: int,
    g: torch.Generator,
    init: Literal["normal", "uniform"] = "uniform",
) -> Factors:
    """Draw factors beside weights: `up` is zero, so they shift nothing yet.

    Args:
        weights: (out, in, …) each.
        rank: of each factor.
        g: draws `down`.
        init: what `down` is drawn from, N(0, 1/rank²) or uniformly in ±1/√in.
    """
    found = {}
    for name, weight in weights.items():
        wide = weight[0].numel()
        if init == "normal":
            down = torch.randn(rank, wide, generator=g) / rank
        else:
            down = (2 * torch.rand(rank, wide, generator=g) - 1) / wide**0.5
        up = torch.zeros(len(weight), rank, device=weight.device)
        found[name] = (up.requires_grad_(), down.to(weight.device).requires_grad_())
    return found


def parameters(factors: Factors) -> dict[str, Tensor]:
    """Return factors one by one, for an optimiser."""
    return {
        f"{name}|{side}": part
        for name, pair in factors.items()
        for side, part in zip(("up", "down"), pair, strict=True)
    }


@contextmanager
def lora(model: Diffusion, rank: int, g: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Put PEFT's LoRA on every attention projection of the denoiser; remove it in the end.

    Yields its trainable weights by name, in float32 whatever the model's precision: Adam's steps
    vanish in half precision. Up-projections start at zero, so nothing changes yet; the others start
    from draws that `g` seeds, since PEFT takes no generator.
    """
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=list(model.sites.lora_targets),
    )
    network: Any = model.component(model.sites.denoiser)
    with torch.random.fork_rng():
        torch.manual_seed(g.initial_seed())
        network.add_adapter(config)
    try:
        weights: dict[str, Tensor] = {
            name: p for name, p in network.named_parameters() if p.requires_grad
        }
        for parameter in weights.values():
            parameter.data = parameter.data.float()
        yield weights
    finally:
        network.unload_lora()
        network.requires_grad_(False)


def factors_of(model: Diffusion) -> Factors:
    """Return (up, down) of every adapted weight, with LoRA's own scaling multiplied in."""
    found, part = {}, model.sites.denoiser
    for name, module in model.component(part).named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            up = module.lora_B["default"].weight.detach() * module.scaling["default"]  # pyright: ignore[reportCallIssue]
            down = module.lora_A["default"].weight.detach()  # pyright: ignore[reportCallIssue]
            found[f"{part}.{name}.weight"] = (up.float().cpu(), down.float().cpu().clone())
    return found


def added(parts: Sequence[Factors], scale: float = 1.0) -> Factors:
    """Return several LoRAs of the same layers as one: their ranks add up, as do their shifts."""
    return {
        name: (
            torch.cat([part[name][0] * scale for part in parts], 1),
            torch.cat([part[name][1] for part in parts]),
        )
        for name in parts[0]
    }
