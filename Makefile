# Two commands matter: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# two processes of one thread each are faster than one of two; who is done takes from the other
TWO := -n 2 --dist worksteal

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

test-slow: $(READY)  ## what takes longer, before a release: every method has power at its preset
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m 'hypothesis and not slow' --hypothesis-profile=default
	PALIMPSEST_FUZZ=700 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) tests/test_nerve_records.py tests/test_nerve_tensors.py

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
