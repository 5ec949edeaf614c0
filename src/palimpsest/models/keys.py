"""Whose weight a key of a file names: Diffusers' and CompVis' names, bare or within others'."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.compvis import CLIP, OPEN_CLIP, PLACES, UNET, VAE, Place, places
from palimpsest.patch.tensor_files import checked_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIXES = (
    (r"conditioner\.embedders\.0\.", "text_encoder"),
    (r"conditioner\.embedders\.1\.", "text_encoder_2"),
    (r"cond_stage_model\.", "text_encoder"),
    (r"(model\.)?diffusion_model\.", "unet"),
    (r"(\w+_)?unet(_\w+)?\.", "unet"),
    (r"(\w+_)?text_encoder_2(_\w+)?\.", "text_encoder_2"),
    (r"(\w+_)?text_encoder(_1|_[a-z]\w*)?\.", "text_encoder"),
    (r"(first_stage_model|vae)\.", "vae"),
    (r"(transformer\.)?text_model\.|transformer\.(?!resblocks)", None),
    (r"(\w*(state_dict|ema|student|params|weights)\w*|_orig_mod|\w*module|(base_)?model)\.", None),
)
"""What stands before a weight's own name, and the network that it says this is."""
UNREAD = re.compile(
    r"(.*\.)?(position_ids|logit_scale|text_projection(\.weight)?|attn_mask|causal_mask)"
    r"|.*\bresblocks\.\d+\..*|(.*\.)?(visual|vision_model|visual_projection)\..*"
    r"|(state_dict\.)?(\w*betas|\w*alphas\w*|log_one\w*|posterior_\w*|lvlb_\w*|logvar|scale_factor)"
    r"|v_pred|ztsnr|(state_dict\.)?(model_ema\.(decay|num_updates)|denoiser\..*)|(.*\.)?first_stage_model\..*"
)
"""What lies beside the weights of a model and is no part of it: tables of the schedule, buffers,
the layers of a text encoder that nothing reads, the half of a CLIP that sees, a training loss."""


@dataclass(frozen=True)
class Found:
    """What was found of a model in a file."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    """By canonical name, in the form that the model has them in."""
    unknown: list[str] = field(default_factory=list)
    """Keys that are nobody's."""
    averages: set[str] = field(default_factory=set)
    """Canonical names that it holds as a running average."""
    twice: bool = False
    """It holds those without averaging, too, and these were taken."""


class Keys:
    """Every name under which a file may hold a weight of some networks."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        states = {f"{p}.{n}": t for p, m in parts.items() for n, t in m.state_dict().items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in states.items()}
        self.places = places(parts)
        self.bare: dict[str, str] = {}
        """Canonical name → CompVis', without what stands before a network."""
        self.known: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        roots = (
            UNET,
            VAE,
            *(p + kind for own in PLACES for p in own for kind in (CLIP, OPEN_CLIP)),
        )
        for name, place in self.places.items():
            root = max((own for own in roots if place.key.startswith(own)), key=len, default="")
            bare = self.bare[name] = place.key.removeprefix(root)
            plain = name.split(".", 1)[1].removeprefix("text_model.")
            for key in dict.fromkeys((bare, plain)):
                self.known[key].append((name, place if key == bare else Place(plain)))
            if root == UNET:  # as the average that is kept in training names it, without dots
                self.known["diffusion_model" + bare.replace(".", "")].append((name, place))

    def read(self, tensors: Mapping[str, Tensor], path: object) -> Found:
        """Return the weights that a file holds.

        Args:
            tensors: the file's.
            path: names it, in words.

        Raises:
            PalimpsestError: a weight that stands there twice, or in no form of a weight.
        """
        plain: dict[str, Tensor] = {}
        averaged: dict[str, Tensor] = {}
        unknown = []
        for key, tensor in tensors.items():
            own, average = self.candidates(key)
            named = self._one_network(own, tensor)
            if not named and not UNREAD.fullmatch(key):
                unknown.append(key)
            into = averaged if average else plain
            for name, place in named:
                if name in into:
                    raise PalimpsestError(f"{path}: holds {name} twice, once as {key!r}")
                checked_tensor(f"{name}: what stands in the file", tensor, read=False)
                into[name] = self._formed(name, place.weight(tensor))
        return Found({**averaged, **plain}, unknown, {*averaged}, bool(averaged.keys() & plain))

    def names(self, key: str, tensor: Tensor) -> list[str]:
        """Return the weights that a key names: none, one, or several that lie in one tensor."""
        return [name for name, _ in self._one_network(self.candidates(key)[0], tensor)]

    def candidates(self, key: str) -> tuple[list[tuple[str, Place]], bool]:
        """Return the weights that a key may name, and whether it says that they are averages."""
        part, average = None, False
        while True:
            own = [each for each in self.known.get(key, ()) if part in (None, _part(each[0]))]
            if own:
                return own, average
            for pattern, network in PREFIXES:
                if before := re.match(pattern, key):
                    key, part = key[before.end() :], network or part
                    average = average or bool(re.search(r"(^|_)ema(_|\.|$)", before[0]))
                    break
            else:
                return [], average

    def _one_network(
        self, named: list[tuple[str, Place]], tensor: Tensor
    ) -> list[tuple[str, Place]]:
        """Return those of one network: of several, the first in which the tensor fits."""
        networks = list(dict.fromkeys(_part(name) for name, _ in named))
        for network in networks:
            own = [each for each in named if _part(each[0]) == network]
            name, place = own[0]
            if (
                isinstance(tensor, torch.Tensor)
                and self._formed(name, place.weight(tensor)).shape == (self.shapes[name])
            ):
                return own
        return [each for each in named if _part(each[0]) == networks[0]] if named else []

    def _formed(self, name: str, tensor: Tensor) -> Tensor:
        """Return a matrix for a convolution of 1×1, and the other way round."""
        shape = self.shapes[name]
        short, long = sorted((tuple(tensor.shape), shape), key=len)
        ones = long[len(short) :]
        fits = len(short) == 2 and long[:2] == short and all(n == 1 for n in ones)
        return tensor.reshape(shape) if fits and ones else tensor


def _part(name: str) -> str:
    return name.split(".", 1)[0]
