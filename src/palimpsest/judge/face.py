"""Faces as a judge of identities: dlib's face network and a folder of reference pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageOps

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.extras import optional, optional_file
from palimpsest.core.prompts import folded
from palimpsest.core.provenance import digest
from palimpsest.core.registry import nearest
from palimpsest.data.images import pictures_in, read_picture
from palimpsest.judge import Looking, Opening
from palimpsest.judge.detectors import Seen, read_each
from palimpsest.methods import Reading, Spec

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 0.6
"""Two faces nearer than this are of one person, as dlib publishes of its network."""
SIDE = 150
"""To what the network's input is cut, in pixels."""
LONGEST = 1024
"""Reference pictures with a longer side are scaled down to it."""


class Network:
    """dlib's face detector and face network, both as the package calls them.

    Faces are aligned by five landmarks. The package's file of 68 is never opened: it was made of
    pictures licensed for other than commercial use only.
    """

    def __init__(self) -> None:
        dlib = optional("dlib", "faces")
        self.detect = dlib.get_frontal_face_detector()
        self.align = dlib.shape_predictor(_weights("shape_predictor_5_face_landmarks"))
        self.net = dlib.face_recognition_model_v1(_weights("dlib_face_recognition_resnet_model_v1"))

    def faces(self, rgb: np.ndarray) -> np.ndarray:
        """Map (height, width, 3) bytes → (f, 128), one row a face, the largest first."""
        found = sorted(self.detect(rgb, 1), key=lambda box: box.area(), reverse=True)
        rows = [self.net.compute_face_descriptor(rgb, self.align(rgb, box)) for box in found]
        return np.array(rows).reshape(-1, 128)


class Faces(Looking):
    """Says which identity is shown, by the nearest face of a folder of reference pictures.

    `FOLDER/NAME/` holds pictures of NAME; of several faces in one the largest is NAME's. A picture
    shows the identity of which any reference is nearest to any of its faces, if they lie less than
    0.6 apart. A picture without a face shows none of them.

    Traps: a face that the detector misses counts as gone.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = (),
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Read the reference pictures.

        Args:
            folder: has a folder of pictures for each identity, called as prompts do; case does not
                matter, nor what stands between words.
            names: what prompts ask for; each must have a folder.
            synonyms: name → other words by which its folder may be called.

        Raises:
            PalimpsestError: a name has no folder, a folder no pictures or a picture no face.
        """
        folders = dict(_folders(folder, names, synonyms or {}))
        if not folders:
            raise PalimpsestError(f"{folder}: it has no folder of pictures for any identity")
        if lacking := [name for name in names if name not in folders.values()]:
            close = nearest(folded(lacking[0]), [folded(each.name) for each in folders])
            raise PalimpsestError(f"{folder}: no folder of pictures of {lacking[0]!r}{close}")
        self.network = Network()
        rows = [(name, row) for each, name in folders.items() for row in self._references(each)]
        self.owners, self.known = [name for name, _ in rows], np.stack([row for _, row in rows])
        self.ref = f"face:{folder.resolve()}"
        own = tuple(dict.fromkeys(self.owners))
        self.classes = {"identity": own}
        made_of = f"{version('dlib-bin')}-{digest(folder)}"
        note = f"distance to the nearest of {len(rows)} references; without a face: none of them"
        self.spec = Spec("dlib faces", made_of, SIDE, own, NEAR, note)

    @classmethod
    def open(cls, opening: Opening) -> Faces:
        """Open it with the folder of reference pictures, such as `face:references`."""
        if not opening.ref or not Path(opening.ref).is_dir():
            raise PalimpsestError(
                f"face:{opening.ref}: give a folder that has a folder of pictures for each "
                "identity, as face:FOLDER"
            )
        return cls(Path(opening.ref), opening.names.get("identity", ()), opening.synonyms)

    def read(self, images: Tensor) -> Reading:
        """Read pictures, (n, 3, height, width) in [0, 1], of any size.

        `confidence` falls evenly with the distance d of the nearest reference, max(0, 1 − d / 1.2):
        one half at the threshold. It is 1 − that of `none of these`, and no probability.
        """
        return read_each("identity", images, self._look)

    def _look(self, rgb: np.ndarray) -> Seen:
        apart = self.distances(rgb)
        if not len(apart):
            return "", 0.0, False
        nearest_one = int(apart.min(0).argmin())
        far = float(apart.min())
        return self.owners[nearest_one], max(0.0, 1 - far / (2 * NEAR)), far < NEAR

    def distances(self, rgb: np.ndarray) -> np.ndarray:
        """Map (height, width, 3) bytes → (f, r): each face's distance from each reference."""
        return np.linalg.norm(self.network.faces(rgb)[:, None] - self.known, axis=-1)

    def _references(self, folder: Path) -> Iterator[np.ndarray]:
        files = pictures_in(folder)
        if not files:
            raise PalimpsestError(f"{folder}: there are no pictures here; add some, or remove it")
        for file in files:
            picture = ImageOps.exif_transpose(read_picture(file))
            picture.thumbnail((LONGEST, LONGEST))
            faces = self.network.faces(np.array(picture))
            if not len(faces):
                raise PalimpsestError(f"{file}: no face is found in it; take another picture")
            yield faces[0]


def _folders(
    folder: Path, names: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Path, str]]:
    """Yield each identity's folder and its name: as prompts spell it, else as the folder does."""
    known = {folded(word): name for name in names for word in (*synonyms.get(name, ()), name)}
    for each in sorted(folder.iterdir()):
        if each.is_dir() and not each.name.startswith("."):
            yield each, known.get(folded(each.name), each.name.replace("_", " "))


def _weights(name: str) -> str:
    """Return the path of a file of weights, found without the package's own, outdated functions."""
    return str(optional_file("face_recognition_models", f"models/{name}.dat", "faces"))
