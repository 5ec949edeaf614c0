"""Run folders of a whole campaign, as the tool would leave them, with pictures of the renderer."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from palimpsest.judge.rates import MEANINGS
from palimpsest.metrics import rates
from palimpsest.metrics.rates import wilson
from palimpsest.world.render import render

OBJECTS = ("parachute", "church", "balloon", "kite", "boat", "owl")
STYLES = ("photo", "sketch", "mosaic", "van gogh")
SPEC = "world judge v1, 64 px, DDIM 20 steps, guidance 3"
JUDGE = {"name": "world judge", "version": "1", "resolution": 64, "ref": "world"}
MODEL = {"name": "world", "identity": "0123456789abcdef", "sampling": "DDIM 20 steps, guidance 3"}


@cache
def png(thing: str, style: str, seed: int) -> bytes:
    """A picture as a file's contents."""
    buffer = io.BytesIO()
    Image.fromarray(render(thing, style, seed)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Campaign:
    """A folder of runs; each is drawn by a chance of its own name."""

    root: Path
    pictures: int = 2
    """Of each object in each style."""

    def run(
        self, name: str, kind: str, title: str, concept: dict[str, Any] | None, **fields: Any
    ) -> str:
        """Write a run; what it leaves and spoils are the chances `shows` and `harm`."""
        shows, harm = fields.pop("shows", 1.0), fields.pop("harm", 0.02)
        folder, dice = self.root / name, random.Random(name)
        (folder / "images").mkdir(parents=True)
        images, scores, asks = [], [], []
        for thing, style, seed in product(OBJECTS, STYLES, range(self.pictures)):
            asked = {"object": thing, "style": style}
            said = dict(asked)
            for part, own in asked.items():
                wanted = bool(concept) and concept["kind"] == part and concept["name"] == own
                if dice.random() > (shows if wanted else 1 - harm):
                    said[part] = dice.choice(
                        [o for o in (OBJECTS, STYLES)[part == "style"] if o != own]
                    )
            file = f"images/{thing}-{style.replace(' ', '-')}-{seed}.png"
            (folder / file).write_bytes(png(said["object"], said["style"], seed))
            prompt = f"{thing} in {style} style"
            images.append({"file": file, "prompt": prompt, "seed": seed, "asks": asked})
            scores.append({"file": file, "labels": said, "confidence": dict.fromkeys(said, 0.9)})
            asks.append(asked)
        labels = {part: [s["labels"][part] for s in scores] for part in ("object", "style")}
        numbers: list[dict[str, Any]] = []
        if concept and kind in ("erase", "recover"):
            clusters = [(i["prompt"], (i["seed"], 0)) for i in images]
            found = rates.unlearning([(concept["kind"], concept["name"])], asks, labels, clusters)
            more = {"unit": "%", "spec": SPEC}
            numbers = [
                {"name": n, **asdict(r), **more, "meaning": MEANINGS[n]} for n, r in found.items()
            ]
        record = {
            "format": 2,
            "kind": kind,
            "status": "done",
            "title": title,
            "method": title.lower().replace(" ", "_") if concept else "",
            "preset": "world" if concept else "",
            "arguments": {"steps": 100} if concept else {},
            "concepts": [concept] if concept else [],
            "seed": 0,
            "model": MODEL,
            "prompts": "abcd1234",
            "judge": JUDGE,
            "numbers": numbers,
            "command": f"palimpsest {kind} {title.lower()}",
            "versions": {"palimpsest-ml": "0.1.0"},
            "seconds": {"train": 1.5},
            "started": "2026-01-01T00:00:00+00:00",
        }
        (folder / "run.json").write_text(json.dumps(record | fields))
        for file, rows in (("images.jsonl", images), ("scores.jsonl", scores)):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    def fill(
        self,
        methods: Sequence[str],
        concepts: Sequence[tuple[str, str]],
        seeds: int,
        recoveries: Sequence[str],
    ) -> Path:
        """Write all combinations; recoveries on gold and on the unedited model, too."""
        dice = random.Random(0)
        original = self.run("original-1", "original", "original", None)
        powers = {m: (dice.uniform(0, 0.6), dice.uniform(0, 0.4)) for m in methods}
        strengths = {r: dice.uniform(0.2, 0.9) for r in recoveries}
        for name, kind in concepts:
            concept = {"name": name, "kind": kind}
            slug = name.replace(" ", "_")
            links = {"original": original, "gold": f"gold-{slug}"}
            self.run(f"gold-{slug}", "erase", "Gold", concept, shows=0.05, original=original)
            for title in recoveries:
                on = {"original": original, "evaluations": 60}
                for where, shown in ((f"gold-{slug}", 0.2), (None, 1.0)):
                    own = {
                        "subject": where,
                        "shows": shown,
                        "curve": curve(0.05 if where else 1.0, shown),
                    }
                    end = "gold" if where else "unedited"
                    self.run(f"{title}-{slug}-on-{end}", "recover", title, concept, **on, **own)
            for method, seed in product(methods, range(seeds)):
                shows, harm = powers[method]
                erased = f"{method.lower()}-{slug}-{seed}"
                own = {"shows": shows, "harm": harm, "seed": seed}
                self.run(erased, "erase", method, concept, **own, **links)
                for title in recoveries:
                    end = shows + (1 - shows) * strengths[title]
                    on = {"original": original, "subject": erased, "gold": f"gold-{slug}"}
                    more = {
                        "shows": end,
                        "harm": harm,
                        "curve": curve(shows, end),
                        "evaluations": 60,
                    }
                    self.run(f"{title}-{slug}-on-{erased}", "recover", title, concept, **on, **more)
        return self.root


def curve(begin: float, end: float, n: int = 48) -> list[dict[str, Any]]:
    """A relearning curve of four points."""
    points = []
    for i in range(4):
        hits = round(n * (begin + (end - begin) * i / 3))
        says = [k < hits for k in range(n)]
        points.append(
            {"step": 20 * i, "evaluations": 20 * i, "rate": asdict(wilson(hits, n)), "says": says}
        )
    return points
