"""Folders of captioned pictures to train on, in Hugging Face's imagefolder format.

```
parachutes/
  00000-a-picture-of-a-parachute.png  …
  metadata.jsonl    one line a picture: file_name, text, and what it was made with
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from palimpsest.core.atomic import reason, write_text
from palimpsest.core.errors import PalimpsestError, WriteError
from palimpsest.core.prompts import Prompt
from palimpsest.data.sources import METADATA
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.runs.images import draw, words

PLAN = "plan.json"
"""In an unfinished folder: the digest of what it will hold."""


def write_imagefolder(
    model: Diffusion,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    patch: Patch | None = None,
    context: Context,
) -> None:
    """Make one picture per prompt, and write them with their captions.

    Pictures gather in `folder` + `.part`, which becomes `folder` when all are there; broken off,
    the same call goes on where it stopped.

    Args:
        model: what draws.
        prompts: what is drawn; the captions are their texts.
        folder: must not exist, or be empty.
        patch: lies over the model while it draws.
        context: shows the progress.

    Raises:
        PalimpsestError: `folder` holds something, an unfinished one lies there for other pictures,
            or the disk is full.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise PalimpsestError(
            f"{folder}: not empty, and a folder to train on may hold nothing else; choose another"
        )
    about = _about(model, patch)
    rows = [_row(model, p, i) | about for i, p in enumerate(prompts)]
    part = folder.with_name(folder.name + ".part")
    _open(part, rows)
    paths = [part / str(row["file_name"]) for row in rows]
    missing = [(path, p) for path, p in zip(paths, prompts, strict=True) if not path.exists()]
    done = len(rows) - len(missing)
    with model.patched(patch), context.progress.task("pictures", len(rows), done) as task:
        draw(model, missing, task)
    write_text(part / METADATA, "".join(json.dumps(row) + "\n" for row in rows))
    (part / PLAN).unlink()
    os.replace(part, folder)


def _row(model: Diffusion, prompt: Prompt, i: int) -> dict[str, object]:
    """Return a picture's line in `metadata.jsonl`, but for what is the same in every line."""
    return {
        "file_name": f"{i:05d}-{words(prompt)}.png",
        "text": prompt.text,
        "seed": prompt.seed,
        "index": prompt.index,
        "guidance": model.sampling.guidance if prompt.guidance is None else prompt.guidance,
    }


def _about(model: Diffusion, patch: Patch | None) -> dict[str, object]:
    """Return who drew the pictures."""
    return {
        "steps": model.sampling.steps,
        "sampling": str(model.sampling),
        "model": model.name,
        "identity": model.identity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "patch": patch.digest()[:16] if patch else "",
    }


def _open(part: Path, rows: list[dict[str, object]]) -> None:
    """Make the unfinished folder, or go on in one that is meant for the same pictures."""
    plan = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if (part / PLAN).is_file() and json.loads((part / PLAN).read_text(encoding="utf-8")) != plan:
        raise PalimpsestError(
            f"{part}: pictures of another command that was not finished; finish that one, or "
            "remove the folder"
        )
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{part}: cannot be made a folder ({reason(error)})") from error
    write_text(part / PLAN, json.dumps(plan))
