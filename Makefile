# Palimpsest: `make demo` shows what it does, `make test` shows that it works. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
# Two test processes of one thread each: a model this small gains nothing from a second thread.
WORKERS ?= 2
TESTS ?= tests

.PHONY: help demo test lint format docs status bench install clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(BIN)/palimpsest  ## set up if needed, audit the demonstration models, write report/
	$(BIN)/palimpsest audit --out report
	@echo "The report is $(abspath report/index.html): open it in a browser."

test: $(BIN)/pytest  ## set up if needed, run the test-suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(TESTS)

lint: $(BIN)/pytest  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(BIN)/pytest  ## put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(BIN)/pytest  ## build the site into site/
	$(BIN)/mkdocs build --strict

status: $(BIN)/pytest  ## write the README's table of systems anew
	$(BIN)/python docs/hooks/systems.py

bench: $(BIN)/pytest  ## the speed comparisons, each beside its peer
	@missed=; for file in $(filter-out %_peer.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$file"; $(BIN)/python $$file || missed="$$missed $$file"; \
	done; [ -z "$$missed" ] || { echo "Failed, or missed a target:$$missed"; exit 1; }

install:  ## set up .venv again, after pyproject.toml or constraints.txt changed
	rm -f $(BIN)/palimpsest $(BIN)/pytest
	$(MAKE) $(BIN)/pytest

clean:  ## remove what the targets made, but not .venv
	rm -rf report site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/pip:
	@echo "Setting up $(VENV): this takes some minutes, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Palimpsest needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(BIN)/palimpsest: | $(BIN)/pip
	$(PIP) $(TORCH)
	$(PIP) -e .

$(BIN)/pytest: | $(BIN)/palimpsest
	$(PIP) -e '.[dev]'
