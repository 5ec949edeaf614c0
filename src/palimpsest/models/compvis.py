"""The names that the authors of Stable Diffusion 1, 2 and XL give its weights in a single file.

CompVis' code and Diffusers build the same networks and number their blocks in two ways: the one by
one list from input to output, the other by resolution. Both orders follow from a network's
configuration, and so does the map between their names. Nothing is downloaded for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

UNET, VAE = "model.diffusion_model.", "first_stage_model."
"""What the names of the U-Net and of the autoencoder begin with."""
CLIP, OPEN_CLIP = "transformer.text_model.", "model."
"""How those of a text encoder go on behind its place: OpenAI's and OpenCLIP's."""
PLACES = (("cond_stage_model.",), ("conditioner.embedders.0.", "conditioner.embedders.1."))
"""The places of a text encoder that stands alone, and of two."""

ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""The U-Net's modules outside its blocks."""
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""What a residual block of the U-Net is made of."""
VAE_BLOCK = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
"""What a block of the autoencoder is made of, where the names differ."""
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn": "attn",
}
"""What a layer of a text encoder is made of."""
THIRDS = {f".{p}_proj.": i for i, p in enumerate("qkv")}
"""Which third of OpenCLIP's joined projection is which."""


@dataclass(frozen=True)
class Place:
    """Where a weight lies in a file, and how."""

    key: str
    """The name of the tensor."""
    third: int | None = None
    """It is this third of the tensor's rows."""
    turned: bool = False
    """The tensor is its transpose."""
    kernel: bool = False
    """The tensor is a convolution of 1×1."""

    def weight(self, tensor: Tensor) -> Tensor:
        """Return the weight out of the file's tensor; of one in another form, the tensor."""
        if self.third is not None and tensor.ndim and len(tensor) % 3 == 0:
            return tensor.chunk(3)[self.third]
        if self.turned and tensor.ndim == 2:
            return tensor.T
        return tensor


# --- the map ---


def places(parts: Mapping[str, nn.Module]) -> dict[str, Place]:
    """Return where a file of CompVis' names holds each weight, by its canonical name.

    Args:
        parts: networks with their configurations: `unet`, `vae`, `text_encoder`, `text_encoder_2`.
    """
    towers = PLACES["text_encoder_2" in parts]
    roots: dict[str, str] = dict(zip(("text_encoder", "text_encoder_2"), towers, strict=False))
    found = {}
    for part, module in parts.items():
        config: Any = getattr(module, "config", None)
        for name in module.state_dict():
            if part not in ("unet", "vae", *roots):  # a family's own
                place = Place(f"{part}.{name}")
            elif part == "unet":
                place = Place(UNET + _renamed(name, unet_modules(config), RESNET))
            elif part == "vae":
                kernel = ".attentions." in name and ".group_norm." not in name
                kernel = kernel and name.endswith(".weight")
                place = Place(VAE + _renamed(name, vae_modules(config), VAE_BLOCK), kernel=kernel)
            else:
                place = _of_tower(roots[part], name.removeprefix("text_model."), config)
            found[f"{part}.{name}"] = place
    return found


def _renamed(name: str, modules: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """Return a name with its module renamed, and what lies in that."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        module, rest = ".".join(parts[:i]), ".".join(parts[i:])
        if module in modules:
            named = [own for own in inner if rest.startswith(own + ".")]
            if named and ".transformer_blocks." not in f".{rest}":
                rest = inner[named[0]] + rest.removeprefix(named[0])
            return f"{modules[module]}.{rest}"
    return name


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Return Diffusers' modules of a U-Net → CompVis'; some of them a network may not have."""
    levels = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    layers = [layers] * levels if isinstance(layers, int) else list(layers)
    found, row = dict(ENDS), 1  # input_blocks.0 is the first convolution
    for i, n in enumerate(layers):
        for j in range(n):
            found[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{row + j}.0"
            found[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{row + j}.1"
        found[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{row + n}.0.op"
        row += n + 1
    for ours, theirs in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        found[f"mid_block.{ours}"] = f"middle_block.{theirs}"
    row = 0
    for i, (n, kind) in enumerate(zip(layers[::-1], config["up_block_types"], strict=True)):
        for j in range(n + 1):
            found[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{row + j}.0"
            found[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{row + j}.1"
        row += n + 1
        last = 2 if "Attn" in kind else 1  # behind the attention, if there is one
        found[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{row - 1}.{last}"
    return found


def vae_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Return Diffusers' modules of an autoencoder → CompVis'; its levels count from the picture."""
    levels, layers, found = len(config["block_out_channels"]), config["layers_per_block"], {}
    for half, way, n in (("encoder", "down", layers), ("decoder", "up", layers + 1)):
        for i in range(levels):
            level = f"{half}.{way}.{i if way == 'down' else levels - 1 - i}"
            for j in range(n):
                found[f"{half}.{way}_blocks.{i}.resnets.{j}"] = f"{level}.block.{j}"
            found[f"{half}.{way}_blocks.{i}.{way}samplers.0"] = f"{level}.{way}sample"
        for ours, theirs in (("resnets.0", "block_1"), ("attentions.0", "attn_1")):
            found[f"{half}.mid_block.{ours}"] = f"{half}.mid.{theirs}"
        found[f"{half}.mid_block.resnets.1"] = f"{half}.mid.block_2"
        found[f"{half}.conv_norm_out"] = f"{half}.norm_out"
    return found


def _of_tower(root: str, name: str, config: Any) -> Place:
    """Return where a text encoder's weight lies; OpenAI's are told by their activation."""
    if config.hidden_act == "quick_gelu":
        return Place(f"{root}{CLIP}{name}")
    root += OPEN_CLIP
    if name == "text_projection.weight":
        return Place(root + "text_projection", turned=True)
    if name == "embeddings.position_embedding.weight":
        return Place(root + "positional_embedding")
    layers = range(config.num_hidden_layers)
    modules = {f"encoder.layers.{i}": f"transformer.resblocks.{i}" for i in layers}
    modules |= {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    key = root + _renamed(name, modules, LAYER)
    for third, i in THIRDS.items():
        if third in key:
            return Place(key.replace(third, ".in_proj_"), third=i)
    return Place(key)


# --- out ---


def written(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of networks by CompVis' names; arguments as of `places`."""
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = defaultdict(dict)
    states = {f"{p}.{n}": t for p, m in parts.items() for n, t in m.state_dict().items()}
    for name, place in places(parts).items():
        tensor = states[name].detach().cpu()
        if place.third is not None:
            thirds[place.key][place.third] = tensor
        elif place.turned:
            found[place.key] = tensor.T.contiguous()
        else:
            found[place.key] = (tensor[:, :, None, None] if place.kernel else tensor).contiguous()
    for key, own in thirds.items():
        found[key] = torch.cat([own[i] for i in range(3)])
    return found
