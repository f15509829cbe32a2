# The verbs of this repository. `make` lists them. Everything runs in .venv, which is made when it is first needed;
# once it is up to date with pyproject.toml and constraints.txt, nothing here needs the network. constraints.txt is what
# `pip freeze --exclude-editable` says in a fresh .venv after `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
JOBS ?= 4
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo up test check fix bench chaos clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.all ## Run everything for a minute on real input, with checks (ARGS=--keep leaves it running)
	@$(BIN)/penstock demo $(ARGS)

up: $(VENV)/.all ## Run everything on this machine until Ctrl-C; state in ./var
	@$(BIN)/penstock up $(ARGS)

test: $(VENV)/.dev ## Run the tests, JOBS=4 at a time (ARGS="-k words" runs some)
	@$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev ## Check format, lint, types and the rule of imports
	@$(BIN)/ruff format --check --quiet . || { echo "make fix formats them"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/test_house.py

fix: $(VENV)/.dev ## Format, and mend what lint can mend by itself
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure Penstock beside its peers (ARGS=--quick only shows that it works)
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: $(VENV)/.dev ## Kill, freeze and restart everything in the middle of jobs, and count what is lost
	@$(BIN)/python tests/chaos/run.py $(ARGS)

clean: ## Remove caches and build results; leaves .venv and var
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON): not found; name a Python from 3.11 on: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Penstock needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.all: $(PINS) | $(BIN)/python
	@echo "installing Penstock with all extras into $(VENV)"
	@$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	@echo "installing Penstock and its development tools into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.all $@
