# Two commands do everything: `make run` plans for this machine, runs the plans and compares; `make test` tests.
# Both make their own virtual environment in .venv; a Python from 3.11 on is all they need.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH ?= $(shell grep '^torch' constraints.txt)
PYTEST_ARGS ?= -q
RUN_DIR ?= build/run

export OMP_NUM_THREADS ?= 1

.PHONY: help run test check lint types imports pytest accuracy reports validate bench clean

help: ## Show what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "plansim needs Python 3.11 or newer; none was found (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) "$(TORCH)"
	$(PIP) -c constraints.txt -e '.[execute,report]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) -c constraints.txt -e '.[test]'
	@touch $@

run: $(VENV)/.run ## Measure this machine, plan for it, run the best plans, print prediction beside measurement
	$(BIN)/plansim calibrate --out $(RUN_DIR)/local-cpu.yaml
	$(BIN)/plansim validate --profile $(RUN_DIR)/local-cpu.yaml --top 5 --out $(RUN_DIR)

test: $(VENV)/.test ## Install what tests need and run them all
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint types imports pytest ## What CI runs: linting, formatting, types, import contracts, tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

imports: $(VENV)/.test
	$(BIN)/lint-imports

pytest: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

accuracy: $(VENV)/.run ## Write reports/accuracy from a folder of published runs: make accuracy TABLES=folder
	@test -n "$(TABLES)" || { echo 'usage: make accuracy TABLES=folder (with published_training*.csv)' >&2; exit 2; }
	$(BIN)/python tools/accuracy.py "$(TABLES)" reports/accuracy

validate: $(VENV)/.run ## Calibrate, then run the plans of the report on this machine, each beside its prediction (half an hour)
	cd reports/local-cpu && $(abspath $(BIN))/plansim calibrate --out local-cpu.yaml
	cd reports/local-cpu && $(abspath $(BIN))/plansim validate --profile local-cpu.yaml --plans plans --out .

reports: $(VENV)/.run ## Make the example reports anew
	$(BIN)/python tools/make_reports.py

bench: $(VENV)/.test ## Print speed as ratios against a reference in the same run
	for file in tests/benchmarks/*.py; do $(BIN)/python "$$file" || exit $$?; done

clean: ## Remove what was built, the virtual environment too
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
