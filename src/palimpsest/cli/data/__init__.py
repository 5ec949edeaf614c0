"""Verbs of `palimpsest data`."""
