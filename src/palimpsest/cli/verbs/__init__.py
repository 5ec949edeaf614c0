"""`palimpsest …`, a file a verb; kept apart, since a module `list` hides the builtin."""
