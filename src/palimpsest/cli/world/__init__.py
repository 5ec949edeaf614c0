"""`palimpsest world …`."""
