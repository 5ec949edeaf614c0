"""A folder of pages about many runs: a leaderboard, their trade-offs, and a page for each."""

from palimpsest.report.site.build import write_site

__all__ = ["write_site"]
