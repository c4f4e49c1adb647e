# Everything here sets itself up: `make demo` and `make test` need nothing but Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Options of every run that `make benchmark` trains, e.g. ARGS="--data-dir DIR --weights FILE".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo benchmark speed docs docs-tables check fix test test-all clean

help:  ## Explain the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), f"Python {v[0]}.{v[1]}: 3.11 or later is needed; make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(READY)  ## Make .venv and install the package with its development tools

demo: $(READY)  ## Draw the demo data, train the models on them, print the table
	$(BIN)/stl10bench benchmark --all --dataset demo --no-pretrained --recipe quick --tracker none $(ARGS)

benchmark: $(READY)  ## The report's five rows on STL-10 (first: stl10bench data download)
	$(BIN)/stl10bench benchmark --all $(ARGS)

speed: $(READY)  ## Time training and data against the obvious alternatives (a quarter of an hour)
	$(BIN)/python scripts/speed.py parts $(ARGS)

docs-tables: $(READY)  ## Write the generated parts of README.md and docs/
	$(BIN)/python scripts/readme_table.py

docs: $(READY)  ## Build the documentation as a site, build/site/index.html
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/zensical build --strict

check: $(READY)  ## Lint, formatting, types, layers, and the generated parts of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/readme_table.py --check

fix: $(READY)  ## Mend what lint and formatting can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY)  ## Run the tests, on two cores without network
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(READY)  ## All tests: also kills at every commit point, thousands of bad files, services
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m faults -s -q

clean:  ## Remove .venv and caches; runs and data stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
