"""`palimpsest patch show`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from palimpsest.cli import session, show
from palimpsest.cli.tree import Call


@dataclass(frozen=True)
class Show:
    """What is in a patch: where it comes from, which tensors it moves, and how far."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A patch file, or a run whose patch is meant."""

    def __call__(self, call: Call) -> None:
        """Print the manifest and a line per tensor."""
        patch = session.patches_from(self.file)[-1]
        about = {key: value for key, value in patch.about.items() if key != "versions"}
        show.say("\n".join(f"{key:<10} {_plain(value)}" for key, value in about.items()))
        rows = []
        for name, edits in patch.edits.items():
            for edit in edits:
                tensors = vars(edit)
                shapes = ", ".join(f"{k} {'×'.join(map(str, t.shape))}" for k, t in tensors.items())
                small = type(patch)({name: (edit,)})
                norm = small.norm()
                size = f"{small.nbytes / 1024:,.1f} kB"
                shown = "–" if norm != norm else f"{norm:.4g}"
                rows.append([name, type(edit).__name__, shapes, size, shown])
        show.table("Tensors", ["parameter", "edit", "shape", "size", "norm"], rows)
        total = patch.norm()
        if patch.hook is not None:
            show.say(f"sampling hook: {patch.hook.kind}, {_plain(patch.hook.arguments())}")
        why = "it replaces tensors whole" if patch.hook is None else "it has a sampling hook"
        norm = f"–, {why}" if total != total else f"{total:.4g}"
        size = f"{patch.nbytes / 2**20:.2f} MB"
        show.say(
            f"{len(patch.names)} parameters, {size}, norm {norm}, digest {patch.digest()[:16]}"
        )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
