"""ConceptBench-like (ours): concepts of three kinds to measure forgetting on.

Zhang et al. 2023, "Forget-Me-Not", arXiv:2303.17591, name a ConceptBench of identities, objects and
styles, and their repository does not say its members (its issue 9 asks for them). These are ours,
and results on them are no results on ConceptBench. Pictures of the first two identities lie in that
repository; the objects are the classes of Imagenette (Howard 2019).
"""

from __future__ import annotations

from typing import get_args

from palimpsest.core.concepts import Concept
from palimpsest.core.kinds import Kind

NAME = "ConceptBench-like (ours)"

MEMBERS: dict[str, tuple[str, ...]] = {
    "identity": (
        *("Elon Musk", "Taylor Swift", "Albert Einstein", "Abraham Lincoln", "Marilyn Monroe"),
        *("Charlie Chaplin", "Mickey Mouse", "Snoopy", "Superman", "Super Mario"),
    ),
    "object": (
        *("tench", "English springer", "cassette player", "chain saw", "church"),
        *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
    ),
    "style": (
        *("Vincent van Gogh", "Claude Monet", "Pablo Picasso", "Rembrandt", "Johannes Vermeer"),
        *("Katsushika Hokusai", "Gustav Klimt", "Edvard Munch", "Paul Cézanne", "Georges Seurat"),
    ),
}
"""Kind → ten names, public ones all."""


def concepts() -> tuple[Concept, ...]:
    """Return every member as a concept, kind by kind."""
    return tuple(Concept(name, kind) for kind in get_args(Kind) for name in MEMBERS.get(kind, ()))
