"""The styles and objects of UnlearnCanvas (Zhang et al. 2024), in its authors' order."""

from __future__ import annotations

from palimpsest.core.files import beside

STYLES, OBJECTS = (
    tuple(name.strip() for name in line.split(","))
    for line in beside(__file__, "unlearncanvas.txt").splitlines()
)
"""`theme_available`, 51 with the photographs that the styles were painted from, and
`class_available`, 20, of `machine_unlearning/evaluation/constants/const.py` in
github.com/OPTML-Group/UnlearnCanvas; blanks stand for their underscores."""
PHOTO = "Seed Images"
"""The photographs: a 51st style, asked for and never erased."""
