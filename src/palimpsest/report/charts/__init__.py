"""Charts as HTML with inline SVG: plain numbers in, markup out, with nothing from elsewhere.

A page that shows one includes `charts/chart.css` in its style and `charts/chart.js` in a script.
Places are in per cent of the plane and sizes in pixels, so text stays readable at any width.
"""

from palimpsest.report.charts.axes import Axis
from palimpsest.report.charts.bars import Bar, bars
from palimpsest.report.charts.figure import GREY, Key, Look, look
from palimpsest.report.charts.lines import Level, Point, Series, lines
from palimpsest.report.charts.matrix import Cell, matrix
from palimpsest.report.charts.scatter import Dot, front, scatter

__all__ = [
    "GREY",
    "Axis",
    "Bar",
    "Cell",
    "Dot",
    "Key",
    "Level",
    "Look",
    "Point",
    "Series",
    "bars",
    "front",
    "lines",
    "look",
    "matrix",
    "scatter",
]
