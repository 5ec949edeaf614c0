# Two commands matter: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow check format clean

setup: $(READY)  ## make the virtual environment and install everything

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## erase, recover, judge and report on the built-in world
	$(BIN)/palimpsest demo

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest

test-slow: $(READY)  ## what takes longer, before a release: every method has power at its preset
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## style, types, and which floor may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_floors.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build runs
