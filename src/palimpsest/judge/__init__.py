"""Those who look at pictures, and the measures that count what they see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest.core.brief import brief, some
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.prompts import Prompt
from palimpsest.core.registry import Registry
from palimpsest.methods import Judge, Measure, Spec, TextJudge

JUDGES = Registry(
    "judge",
    "palimpsest.judges",
    {
        "world": "Classifier",
        "clip": "ZeroShotJudge",
        "vlm": "Questioner",
        "nudenet": "NudeNet",
        "opennsfw": "OpenNsfw",
        "face": "Faces",
        "hf": "ImageClassifier",
        "vit": "UnlearnCanvas",
    },
    __name__,
)
"""Every judge by its name; one of another package is made without arguments."""


class Looking:
    """What all who look at pictures share: their one line says what they are."""

    spec: Spec

    def __repr__(self) -> str:
        return brief(self, repr(self.spec.name), some(len(self.spec.classes), "name"))


@dataclass(frozen=True)
class Opening:
    """What a judge is opened with by a name such as `hf:OWNER/NAME`.

    A judge that is opened by its name has it as `opening`, so that a record says it, too.
    """

    ref: str = ""
    """What stands behind the colon; empty without one."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Kind → the names that prompts ask for: what is forgotten, then the others."""
    synonyms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name → other words for it."""
    class_map: dict[str, str] = field(default_factory=dict)
    """A classifier's own label → the name that prompts ask for."""
    device: str = "cpu"


def opening(
    concepts: Iterable[Concept], prompts: Iterable[Prompt] = (), device: str = "cpu"
) -> Opening:
    """Return what a judge is opened with to look at pictures of some prompts.

    Args:
        concepts: what is forgotten; their anchors can be named, too.
        prompts: what is asked.
        device: where the judge computes.
    """
    concepts = [*concepts]
    first = [(concept.kind, concept.name) for concept in concepts]
    others = {(c.kind, c.anchor) for c in concepts if c.anchor}
    others |= {pair for prompt in prompts for pair in prompt.asks.items()}
    named: dict[str, dict[str, None]] = {}
    for kind, name in [*first, *sorted(others)]:
        named.setdefault(kind, {})[name] = None
    names = {kind: tuple(found) for kind, found in sorted(named.items())}
    synonyms = {concept.name: concept.synonyms for concept in concepts if concept.synonyms}
    return Opening(names=names, synonyms=synonyms, device=device)


def open_judge(word: str, opening: Opening | None = None) -> Judge:
    """Open a judge by its name.

    Args:
        word: a name of `JUDGES`, with what it reads behind a colon where it reads something; or
            several, joined by `+`, which see different kinds of concepts.
        opening: what it is opened for; its `ref` is that of the word.

    Raises:
        PalimpsestError: no such judge, or what it reads is not there or cannot serve.
    """
    from palimpsest.judge.joined import Joined, parts

    if len(words := parts(word)) > 1:
        made: Any = Joined([open_judge(each, opening) for each in words])
        made.opening = opening or Opening()
        return made
    name, _, ref = word.partition(":")
    kind = JUDGES.load(name)
    if not hasattr(kind, "open"):
        return checked(kind())
    asked = replace(opening or Opening(), ref=ref)
    made = kind.open(asked)
    if not hasattr(made, "opening"):
        made.opening = asked
    return checked(made)


COUNTED = {
    "rates": "Rates",
    "cosine": "Cosine",
    "frechet": "Frechet",
    "agreement": "Agreement",
    "zero_shot": "ZeroShot",
    "membership": "Membership",
    "answers": "Answers",
}
"""Measures that are counted wherever they can be, without being named."""
MEASURES = Registry(
    "measure",
    "palimpsest.measures",
    COUNTED
    | {
        "clip_score": "ClipScore",
        "fid": "Inception",
        "kid": "Kid",
        "lpips": "LPIPS",
        "m_score": "MScore",
        "ms_ssim": "MSSSIM",
        "ssim": "SSIM",
        "style": "Style",
        "watermark": "Watermark",
    },
    __name__,
)
"""Every measure by its name; one of another package is made without arguments."""


def by_name() -> list[str]:
    """Return what a command counts when it is named."""
    return [n for n in MEASURES if n not in COUNTED and not MEASURES.said(n, "in_python")]


@dataclass(frozen=True)
class Counting:
    """What a measure is opened with by a name such as `lpips:FILE`."""

    ref: str = ""
    """What stands behind the colon; empty without one."""
    judge: Judge | None = None
    """The run's own."""
    clip: TextJudge | None = None
    """The run's own."""
    device: str = "cpu"
    force: bool = False
    """Count distances of too few pictures, too."""

    def file(self, name: str, what: str) -> Path:
        """Return the file behind the colon.

        Raises:
            PalimpsestError: none is named, or there is none.
        """
        path = Path(self.ref)
        if not self.ref or not path.is_file():
            missing = f"{path}: no such file" if self.ref else "no file is named"
            raise PalimpsestError(f"the measure {name!r} reads {what} ({missing}): {name}:FILE")
        return path


def open_measure(word: str, counting: Counting | None = None) -> Measure:
    """Open a measure by its name.

    Args:
        word: a name of `MEASURES`, with what it reads behind a colon where it reads something.
        counting: what it is opened with; its `ref` is that of the word.

    Raises:
        PalimpsestError: no such measure, one that is counted without being named, or what it needs
            is not there.
    """
    name, _, ref = word.partition(":")
    kind = MEASURES.load(name)
    if why := getattr(kind, "in_python", ""):
        raise PalimpsestError(
            f"the measure {name!r} {why}; count it in Python while the run is made: "
            f"Runner.run(…, measures=[{kind.__name__}()])"
        )
    if hasattr(kind, "open"):
        return kind.open(replace(counting or Counting(), ref=ref))
    if name in COUNTED:
        raise PalimpsestError(f"the measure {name!r} is counted wherever it can be; leave it out")
    return kind()


def checked(judge: Any) -> Judge:
    """Return a judge that keeps to the protocol, before anything is spent on it.

    Raises:
        PalimpsestError: naming what it lacks.
    """
    lacks = [name for name in ("spec", "classes", "read") if not hasattr(judge, name)]
    if lacks:
        raise PalimpsestError(
            f"{type(judge).__name__} is no judge: it has no {' and no '.join(lacks)}; a judge has "
            "spec, classes and read (palimpsest.methods.Judge)"
        )
    if not isinstance(judge.classes, Mapping):
        raise PalimpsestError(
            f"{type(judge).__name__} is no judge: its classes must be a mapping from kinds to the "
            f"names that it can say, not {judge.classes!r}"
        )
    return judge


def spec_text(spec: Spec) -> str:
    """Return a judge's spec in the words of a number's."""
    size = [f"{spec.resolution} px"] if spec.resolution else []
    cut = [f"threshold {spec.threshold:g}"] if spec.threshold is not None else []
    return ", ".join([f"{spec.name} v{spec.version}", *size, *cut])
