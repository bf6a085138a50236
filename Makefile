# Two commands do it all on a machine with Python 3.11, make, and (for `make test`) g++ and perl:
#   make run     answer a prompt on the emulated accelerator
#   make test    every check and test
# Also: make docs (regenerate its pages and build the site), make slow (the tests that take minutes), make mutants
# (faults that the tests must notice), make clean.

MODEL ?= smollm2-135m
PROMPT ?= Explain in two sentences why the sky is blue.
DEVICE ?= emulator
TOKENS ?= 64
# Parallel test processes; each holds a model, computes in one thread and builds simulators.
JOBS ?= 2

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# Strict: a broken link, a page outside the navigation or a name that no longer exists is an error.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: run test check pytest docs slow mutants clean
.DEFAULT_GOAL := run

run: $(VENV)/run.stamp
	$(BIN)/lepton run $(MODEL) "$(PROMPT)" --device $(DEVICE) --max-new-tokens $(TOKENS)

test: check pytest

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(MKDOCS)

pytest: $(VENV)/test.stamp $(VENV)/icarus.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup

slow: $(VENV)/test.stamp
	$(BIN)/pytest -m slow

mutants: $(VENV)/test.stamp
	$(BIN)/python tests/mutants/run.py --jobs $(JOBS)

docs: $(VENV)/test.stamp
	$(BIN)/python -m lepton_hw.reference > docs/reference.md
	$(BIN)/python tools/docs/errors.py > docs/errors.md
	$(MKDOCS)
	@echo "The site is in build/site: open build/site/index.html"

# pyproject.toml and constraints.txt say what is installed; a change of either installs again.
$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Lepton and what it needs into $(VENV): about 1 GB, a few minutes"
	@$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Lepton with everything its tests need into $(VENV): about 2 GB, a few minutes"
	@$(PIP) -e ".[sim,synth,docs,dev]"
	@touch $@ $(VENV)/run.stamp

# Icarus Verilog is a second opinion on small benches, which say so when they go without it.
$(VENV)/icarus.stamp: | $(BIN)/python
	@command -v iverilog >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	  { apt-get -qq update && apt-get -qq install -y iverilog; } >/dev/null 2>&1 || \
	  echo "note: iverilog could not be installed; its benches are skipped"
	@touch $@

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Lepton needs Python 3.11 or newer, but '$(PYTHON)' is older or missing; pass PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: install it (Debian: python3-venv)"; exit 1; }

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
