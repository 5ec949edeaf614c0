"""`palimpsest patch show`."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from palimpsest.cli import console, open_run
from palimpsest.cli.telling import Shown
from palimpsest.cli.tree import Call

if TYPE_CHECKING:
    from palimpsest.patch import Patch
    from palimpsest.patch.hooks import Hook

GROUPS = {
    r"unet\..*\.attn2\.to_[kv]\.": "U-Net, cross-attention k, v",
    r"unet\..*\.attn2\.": "U-Net, cross-attention q, out",
    r"unet\..*\.attn1\.": "U-Net, self-attention",
    r"unet\..*\.attentions\.": "U-Net, feed-forward and projections",
    r"unet\.": "U-Net, convolutions and time",
    r"text_encoder\..*token_embedding": "text encoder, token embeddings",
    r"text_encoder\..*\.self_attn\.": "text encoder, attention",
    r"text_encoder\.": "text encoder, the rest",
}
"""How the name of a parameter begins → its group of layers; the first that fits counts."""


@dataclass(frozen=True)
class Show:
    """What is in a patch: where it comes from, which layers it moves, and how far."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A patch file, or a run whose patch is meant."""
    tensors: bool = False
    """A line per tensor too, with its base's fingerprint."""

    def __call__(self, call: Call) -> None:
        """Print what made it, a line per group of layers, and the bases' fingerprints."""
        patch = open_run.patches_from(self.file)[-1]
        console.say("\n".join(explained(patch.about)))
        columns = ["layers", "parameters", "edits", "norm", "share of energy", "size"]
        console.table("Groups of layers", columns, grouped(patch))
        if self.tensors:
            columns = ["parameter", "edit", "shape", "norm", "size", "base"]
            console.table("Tensors", columns, each(patch))
        if patch.hook is not None:
            console.say("\n".join(hooked(patch.hook)))
        for part in patch.components:
            console.say(f"base of {part}: {base_print(patch, part)}")
        console.say(f"digest {patch.digest()[:16]}")


def explained(about: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield what made a patch, part by part if it was composed of several."""
    for key, value in about.items():
        if key == "of" and isinstance(value, Mapping):
            yield from explained(value, indent)
        elif key == "sum":
            for number, part in enumerate(value, 1):
                yield f"{indent}part {number} of {len(value)}"
                yield from explained(part, indent + "  ")
        elif key != "versions":
            yield f"{indent}{key:<10} {_plain(value)}"


def hooked(hook: Hook) -> Iterator[str]:
    """Yield what a sampling hook changes beside the weights."""
    yield f"sampling hook: {hook.kind}, {_plain(hook.arguments())}"
    if hook.adapters:
        size = sum(t.numel() * t.element_size() for t in hook.tensors().values())
        ranks = {len(down) for _, down in hook.adapters.values()}
        yield (
            f"it lies beside {len(hook.adapters)} layers, {', '.join(map(str, sorted(ranks)))} "
            f"adapters each, {_size(size)}"
        )


def grouped(patch: Patch) -> list[list[Any]]:
    """Return a row per group of layers, and one of everything."""
    from palimpsest.patch.algebra import energies

    energy = energies(patch)
    known = sum(e for e in energy.values() if e == e)
    rows = []
    for label, names in by_group(patch.edits).items():
        kinds = Counter(kind(edit) for name in names for edit in patch.edits[name])
        told = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        own = sum(energy[name] for name in names)
        size = type(patch)({name: patch.edits[name] for name in names}).nbytes
        share = own / known if known else nan
        text = "–" if share != share else f"{console.figure(100 * share, 3)} %"
        rows.append(
            [label, len(names), told, sqrt(own), Shown(share, text), Shown(size, _size(size))]
        )
    return rows


def each(patch: Patch) -> list[list[Any]]:
    """Return a row per tensor."""
    from palimpsest.patch.algebra import energies

    rows = []
    for name, edits in patch.edits.items():
        for edit in edits:
            alone = type(patch)({name: (edit,)})
            shapes = [f"{k} {'×'.join(map(str, t.shape))}" for k, t in vars(edit).items()]
            norm, size = sqrt(energies(alone)[name]), Shown(alone.nbytes, _size(alone.nbytes))
            base = patch.base.get(name, "unknown")
            rows.append([name, kind(edit), ", ".join(shapes), norm, size, base])
    return rows


def by_group(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the parameters of each group of layers, and all of them."""
    every, groups = list(names), {}
    for name in every:
        groups.setdefault(layer_group(name), []).append(name)
    return {**groups, "all": every}


def layer_group(name: str) -> str:
    """Return which group of layers a parameter is of."""
    found = (label for pattern, label in GROUPS.items() if re.match(pattern, name))
    return next(found, name.split(".")[0])


def kind(edit: Any) -> str:
    """Return an edit's kind, with the rank of a low-rank one."""
    name = {"LowRank": "low-rank"}.get(type(edit).__name__, type(edit).__name__.lower())
    return f"{name} (rank {len(edit.down)})" if name == "low-rank" else name


def base_print(patch: Patch, part: str) -> str:
    """Return a fingerprint over those of all base tensors that the patch touches in a component."""
    names = sorted(name for name in patch.names if name.startswith(part + "."))
    prints = [f"{name} {patch.base[name]}\n" for name in names if name in patch.base]
    if not prints:
        return "not recorded, so any model of the same shapes is accepted"
    joint = hashlib.sha256("".join(prints).encode()).hexdigest()[:16]
    return f"{joint} over {len(prints)} of {len(names)} tensors"


def _size(count: int) -> str:
    return f"{count / 1024:,.1f} kB" if count < 2**20 else f"{count / 2**20:,.2f} MB"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
