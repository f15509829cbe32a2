# The verbs of this repository. `make` lists them. Everything runs in .venv, which is made when it is first needed;
# once it is up to date with pyproject.toml and constraints.txt, nothing here needs the network. constraints.txt is the
# output of `pip freeze --exclude-editable` in a fresh .venv after `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
JOBS ?= 6
PINS := pyproject.toml constraints.txt
# Where an image has set this, each process of the tests compiles all modules again, and each worker all tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo up test collect test-pythons check check-wheel states pictures fix bench chaos fuzz django-tasks-suite dramatiq-suite sbom release clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.all ## Run everything for a minute on real input, with checks (ARGS=--keep leaves it running)
	@$(BIN)/penstock demo $(ARGS)

up: $(VENV)/.all ## Run everything on this machine until Ctrl-C; state in ./var
	@$(BIN)/penstock up $(ARGS)

test: $(VENV)/.dev ## Run the tests, JOBS=6 at a time (ARGS="-k words" runs some)
	@$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

collect: $(VENV)/.dev
	@$(BIN)/pytest --collect-only -qq >/dev/null

test-pythons: $(VENV)/.dev ## Run a selection of the tests on the other supported Pythons that are here
	@$(BIN)/python infra/pythons.py --jobs $(JOBS) $(ARGS)

check: $(VENV)/.dev ## Check format, lint, types and the house rules
	@$(BIN)/ruff format --check --quiet . || { echo "make fix formats them"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/test_house.py

check-wheel: $(VENV)/.dev ## Build the wheel and see that it works from a fresh environment
	@$(BIN)/python infra/wheel.py

fix: $(VENV)/.dev ## Format, and fix what lint can fix by itself
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix .

states: $(VENV)/.dev ## Write the diagram of a job's states into docs/architecture.md
	@$(BIN)/python tests/ledger/arrows/page.py

pictures: $(VENV)/.dev ## Make the pictures of the console and of the board in docs/images, from a real run of 20 minutes
	@$(BIN)/python infra/pictures/run.py docs/images --minutes 20 $(ARGS)

bench: $(VENV)/.dev ## Measure Penstock beside its peers (ARGS=--quick only shows that it works)
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: $(VENV)/.dev ## Kill, freeze and restart everything in the middle of jobs, and count what is lost
	@$(BIN)/python tests/chaos/run.py $(ARGS)

fuzz: $(VENV)/.dev ## Give the gateway and all decoders generated input (ARGS="--seconds 600 --seed N")
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

django-tasks-suite: $(VENV)/.dev ## Run Django's own tests of its tasks on our backend, on Django 6 and on the backport
	@$(BIN)/python infra/suites/django_tasks.py $(ARGS)

dramatiq-suite: $(VENV)/.dev ## Run Dramatiq's own tests of actors with a worker of ours (ARGS="--broker-url amqp://…")
	@$(BIN)/python infra/suites/dramatiq_suite.py $(ARGS)

celery-suite: $(VENV)/.dev ## Run Celery's own integration suite on its worker and on ours (ARGS="--broker redis --only ours")
	@$(BIN)/python infra/suites/celery_suite.py $(ARGS)

sbom: $(VENV)/.dev ## Write a bill of materials and hashed requirements of the image into dist/
	@$(BIN)/python infra/sbom.py $(ARGS)

release: $(VENV)/.dev ## Make a release: VERSION=0.2.0 (ARGS=--dry-run changes nothing)
	@$(BIN)/python infra/release.py $(VERSION) $(ARGS)

clean: ## Remove caches and build results; leaves .venv, .venv-3.x and var
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

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
	@$(BIN)/python infra/kubernetes/tools.py $(BIN)
	@touch $(VENV)/.all $@
