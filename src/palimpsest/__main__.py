"""`python -m palimpsest`: the same as the command `palimpsest`."""

from palimpsest.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
