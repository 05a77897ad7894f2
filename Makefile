# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: setup test lint demo clean slow

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "modistill needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

test: setup
	$(BIN)/pytest -n 2 -m "not slow"

slow: setup
	$(BIN)/pytest -n 2 -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh demo

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
