# Everything below works on a bare machine with Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup demo test test-slow test-page check format clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed-dev  ## Create .venv with the package and all tools

demo: $(VENV)/.installed  ## Compare the paper's heads and a converted one on a small model (about five minutes)
	$(BIN)/codehead demo

test: $(VENV)/.installed-dev  ## The quick tests
	$(PYTEST) -n 2

test-slow: $(VENV)/.installed-dev  ## The tests that take minutes
	$(PYTEST) -m slow

test-page: $(VENV)/.installed-dev  ## The page of a report in a real browser (needs Chromium)
	$(PYTEST) -m slow tests/integration/test_report_page.py

check: $(VENV)/.installed-dev  ## Lint, types, layers, tests: what must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -n 2

format: $(VENV)/.installed-dev  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
