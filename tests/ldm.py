"""Write a model as the single file that the authors of Stable Diffusion keep theirs in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
HEAD = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn": "attn",
    "embeddings.": "",
    "position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}


def renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def of_unet(name: str, layers: int, attention: bool) -> str:
    """Return a U-Net parameter's name; `attention` says whether its up block has some."""
    if not (found := re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", name)):
        return renamed(name, HEAD)
    way, block, kind, layer, rest = found.groups()
    i, j = int(block or 0), int(layer)
    rest = renamed(rest, RESNET) if kind == "resnets" else rest
    column = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 1 + attention}[kind]
    if way == "mid":
        return f"middle_block.{2 * j + column}.{rest}"
    if way == "down":
        smaller = kind == "downsamplers"
        row = 1 + i * (layers + 1) + (layers if smaller else j)
        return f"input_blocks.{row}.{column}.{rest.replace('conv', 'op') if smaller else rest}"
    row = i * (layers + 1) + (layers if kind == "upsamplers" else j)
    return f"output_blocks.{row}.{column}.{rest}"


def of_vae(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in (
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
    ):
        name = re.sub(rf"mid_block\.attentions\.0\.{ours}", f"mid.attn_1.{theirs}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = lambda m: f"up.{blocks - 1 - int(m[1])}."  # noqa: E731 - theirs count from the picture
    name = re.sub(r"up_blocks\.(\d)\.", up, name)
    return name.replace("upsamplers.0", "upsample").replace("resnets", "block")


def open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return OpenCLIP's parameters: queries, keys and values in one, the projection transposed."""
    found: dict[str, Tensor] = {}
    for own, tensor in state.items():
        name = renamed(own.removeprefix("text_model."), OPEN_CLIP)
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            each = [state[_own(state, name, p)] for p in "qkv"]
            found[name.replace(".q_proj.", ".in_proj_")] = torch.cat(each)
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        else:
            found[name] = tensor
    return found


def _own(state: Mapping[str, Tensor], theirs: str, p: str) -> str:
    wanted = theirs.replace(".q_proj.", f".{p}_proj.")
    return next(n for n in state if renamed(n.removeprefix("text_model."), OPEN_CLIP) == wanted)


def write(pipeline: Any, path: Path) -> None:
    """Write a pipeline of Stable Diffusion 1 or XL as one file."""
    unet, vae, state = pipeline.unet, pipeline.vae, {}
    layers, kinds = unet.config["layers_per_block"], unet.config["up_block_types"]
    for name, tensor in unet.state_dict().items():
        block = re.match(r"up_blocks\.(\d)", name)
        attends = bool(block) and "CrossAttn" in kinds[int(block[1])]  # type: ignore[index]
        state["model.diffusion_model." + of_unet(name, layers, attends)] = tensor
    for name, tensor in vae.state_dict().items():
        state["first_stage_model." + of_vae(name, len(vae.config["up_block_types"]))] = tensor
    two = hasattr(pipeline, "text_encoder_2")
    stem = "conditioner.embedders.0." if two else "cond_stage_model."
    for name, tensor in pipeline.text_encoder.state_dict().items():
        state[f"{stem}transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    if two:
        for name, tensor in open_clip(pipeline.text_encoder_2.state_dict()).items():
            state[f"conditioner.embedders.1.model.{name}"] = tensor
    save_file({name: t.clone().contiguous() for name, t in state.items()}, path)
