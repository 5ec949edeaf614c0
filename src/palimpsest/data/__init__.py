"""Captioned and labelled pictures, read from wherever they lie."""
