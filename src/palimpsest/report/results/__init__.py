"""Results as data: what stands in run folders as rows, and over seeds as summaries.

```python
from palimpsest.report.results import rows, summaries

found = rows([Path("runs")])     # a Row for every number of every finished run
over = summaries(found)          # a Summary for every number of runs that differ in seed alone
over[0].method, over[0].measure, over[0].value, over[0].low, over[0].high, over[0].seeds
```

**Names.** `Row` and `Summary` share the fields of `About`, which are also the columns of every file
and data frame: what was done (`kind`, `method`, `title`, `preset`, `settings`), to what (`model`,
`identity`, `base`, `concepts`, `kinds`, `prompts`, `on`, `subject_method`, `subject_title`,
`subject_settings`), and the number (`judge`, `measure`, `concept`, `value`, `low`, `high`, `n`,
`missing`, `unit`, `spec`, `meaning`, `better`). A `Row` adds its run (`run`, `folder`, `seed`,
`subject`, `subject_seed`, `seconds`, `memory_mb`, `evaluations`, `commit`, `command`), a `Summary`
its seeds (`seeds`, `seed_list`, `runs`, `sd_seeds`, `sd_pictures`, `sd_rest`, `of_seeds`, `note`).

**What belongs together.** `settings` is one method with one choice of settings, over all concepts
and models; `variant` is that on one concept, model, list of prompts and subject: its runs differ in
their seed alone. Who has read the runs already calls `rows_of(materials)`.

**Measures.** `UA`, `IRA`, `CRA` and `Concept shown` by each judge (erased models have the last as
well, so that erasures and recoveries can be set side by side), the others as records name them, and
what a run took (`Training time`, `Peak memory`, `Gradient evaluations` …). Of kind `original` are
the unedited model's numbers on an erasure's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from palimpsest.core.errors import PalimpsestError
from palimpsest.report.results.rows import COLUMNS, About, Row, rows, rows_of
from palimpsest.report.results.summaries import ONE, SUMMARY_COLUMNS, Summary, summaries

if TYPE_CHECKING:
    import pandas

__all__ = [
    "COLUMNS",
    "ONE",
    "SUMMARY_COLUMNS",
    "About",
    "Row",
    "Summary",
    "results",
    "rows",
    "rows_of",
    "summaries",
]


def results(
    folder: str | Path | Sequence[str | Path], over: Literal["", "seeds"] = ""
) -> pandas.DataFrame:
    """Return the numbers of all finished runs in a folder as a pandas data frame.

    Needs the extra `pandas`.

    Args:
        folder: a run's folder, one that holds runs, or several of either.
        over: `seeds` gives one line for runs that differ in their seed alone, with the mean, its
            interval and the variance split; else every number of every run has one.

    Returns:
        A frame with the columns `COLUMNS`, or `SUMMARY_COLUMNS`.

    Raises:
        PalimpsestError: pandas is not installed, `over` is another word, no run lies there, or one
            cannot be read.
    """
    if over not in ("", "seeds"):
        raise PalimpsestError(f"over={over!r}: there is 'seeds', and '' for every run's own")
    try:
        import pandas
    except ImportError:
        raise PalimpsestError(
            "data frames need pandas: pip install 'palimpsest-ml[pandas]'"
        ) from None
    paths = [folder] if isinstance(folder, str | Path) else folder
    found = rows(list(map(Path, paths)))
    if over:
        return pandas.DataFrame([s.data for s in summaries(found)], columns=[*SUMMARY_COLUMNS])
    return pandas.DataFrame([row.data for row in found], columns=[*COLUMNS])
