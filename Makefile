# Everything below creates its own environment in .venv and its own AiiDA profiles below this folder.
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO := $(CURDIR)/.demo

.PHONY: demo test test-fast lint docs env clean

env: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: env  ## the main job, small: (H2O)6 from a YAML file to IR and Raman spectra, in demo-output/
	mkdir -p $(DEMO)/.aiida
	AIIDA_PATH=$(DEMO) $(BIN)/mimyria-wf setup
	AIIDA_PATH=$(DEMO) $(BIN)/mimyria-wf run templates/campaigns/water_cluster.yaml -o demo-output
	@echo "The figures and tables are in demo-output/; the provenance: AIIDA_PATH=$(DEMO) $(BIN)/verdi process list -a"

test: env  ## all tests; those with CP2K need its Debian package
	$(BIN)/python -m pytest

test-fast: env  ## without the slow tests
	$(BIN)/python -m pytest -m 'not slow and not cp2k'

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .demo demo-output site
