"""Run folders: what was asked, what came out, and the work in between."""
