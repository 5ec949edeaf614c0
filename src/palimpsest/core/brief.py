"""Values told in one line, as `repr` shows them."""

from __future__ import annotations


def brief(value: object, *parts: object) -> str:
    """Return the name of a value's class, and what is worth reading of it."""
    return f"{type(value).__name__}({', '.join(str(part) for part in parts if part)})"


def some(n: int, noun: str) -> str:
    """Return how many there are: nothing, `1 tensor`, `32 tensors`."""
    return f"{n:,} {noun}{'s' * (n != 1)}" if n else ""


class Outcome:
    """Told by its patch, and by how much it has of what else a method may come back with."""

    def __repr__(self) -> str:
        own, counted = (
            vars(self),
            {"curve": "curve point", "prompts": "prompt", "asked": "question"},
        )
        told = [some(len(own[name]), noun) for name, noun in counted.items()]
        return brief(
            self, own["patch"], *told, some(len(own["vectors"]), "embedding"), own["short"]
        )


def count(n: int) -> str:
    """Return a number of parameters: `1.9 M`."""
    for factor, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if n >= factor:
            return f"{n / factor:.1f}{unit}"
    return str(n)


def size(n: int) -> str:
    """Return a number of bytes: `1.2 MB`."""
    return f"{n / 1024:,.1f} kB" if n < 2**20 else f"{n / 2**20:,.1f} MB"
