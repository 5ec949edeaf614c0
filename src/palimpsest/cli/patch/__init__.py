"""`palimpsest patch …`."""
