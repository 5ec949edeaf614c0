"""What a recovery came back with, kept in its run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Recovery, Result
from palimpsest.patch import asking
from palimpsest.patch.tensor_files import write_tensors
from palimpsest.runs import images
from palimpsest.runs.folder import Run


def keep(run: Run, attempt: Result, method: Recovery, processes: int = 1) -> dict[str, Any]:
    """Write down everything but the patch, and return what the record says of it.

    Args:
        run: the recovery's run.
        attempt: what it came back with.
        method: the recovery, for its budget where it spent all of it.
        processes: how many trained, each on draws of its own.

    Raises:
        PalimpsestError: it changed neither weights nor what is asked, or both, or did not answer
            every prompt once.
    """
    answers = _answers(run, attempt)
    for i, image in enumerate(() if attempt.images is None else attempt.images):
        images.save_png(image, run.path(f"training/{i:03d}.png"))
    if attempt.asking is not None:
        attempt.asking.save(run.path(asking.NAME))
    if attempt.vectors:
        _save_vectors(run, attempt.vectors)
    return {
        "curve": tuple(replace(p, evaluations=processes * p.evaluations) for p in attempt.curve),
        "evaluations": processes * _evaluations(attempt, method),
        "queries": attempt.queries,
        "found": tuple(attempt.prompts),
        "vectors": {name: list(vector.shape) for name, vector in attempt.vectors.items()},
        "notes": dict(attempt.notes),
        "arm": attempt.arm,
        "answers": answers,
    }


def _answers(run: Run, attempt: Result) -> int:
    """Keep the pictures that the model under attack drew; how many there are."""
    if attempt.answers is None:
        if attempt.patch is None:
            raise PalimpsestError(
                "the recovery changed neither weights nor what is asked: there is nothing to keep"
            )
        return 0
    if attempt.patch is not None:
        raise PalimpsestError(
            "the recovery changed weights and what is asked; which of them brought the concept "
            "back could not be told, so let it change one"
        )
    n = len(attempt.answers)
    if n != len(attempt.asked) or n == 0 or len(set(attempt.asked)) < n:
        raise PalimpsestError(
            f"the recovery answered {len(attempt.asked)} prompts with {n} pictures; each must be "
            "asked once and answered by one"
        )
    for prompt, image in zip(attempt.asked, attempt.answers, strict=True):
        images.save_png(image.cpu(), run.path(images.picture_name(prompt)))
    run.write_rows("images.jsonl", map(images.row, attempt.asked))
    return n


def _evaluations(attempt: Result, method: Recovery) -> int:
    """Return the gradient evaluations spent: the curve may end before, or the method count none."""
    if attempt.evaluations is not None:
        return attempt.evaluations
    return max([method.evaluations()[1], *(point.evaluations for point in attempt.curve)])


def _save_vectors(run: Run, vectors: Mapping[str, Any]) -> None:
    own = {name: vector.detach().float().cpu().contiguous() for name, vector in vectors.items()}
    write_tensors(run.path("vectors.safetensors"), own)
