# `make train` and `make test` set up .venv on the first call, or after pyproject.toml or constraints.txt changed.
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
DECISIONS ?= experiments/phase2/PHASE2_DECISIONS.md
EXPERIMENTS ?= chunk_size_lock niah_frequency rollback_threshold chunk_size_learning

.DEFAULT_GOAL := help
.PHONY: help setup train decisions gate test lint types fast slow triton extras format speed clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with the tested set of packages

train: $(STAMP)  ## train the default model; make train ARGS="model=small train.steps=2000"
	$(BIN)/python -m atlas.train $(ARGS)

decisions: $(STAMP)  ## measure all that is decided by rule anew: experiments/phase2/PHASE2_DECISIONS.md
	@folder=outputs/decisions/$$(date +%Y%m%d-%H%M%S); \
	for experiment in $(EXPERIMENTS); do \
		$(BIN)/python -m atlas.train experiment=$$experiment hydra.sweep.dir=$$folder/$$experiment $(ARGS) \
			|| [ $$? -eq 1 ] || exit 1; \
	done; \
	$(BIN)/python -m experiments.phase2.decide $$folder/* document=$(DECISIONS) \
		|| [ $$? -eq 1 ]  # STOP is a decision too

gate: $(STAMP)  ## the exit gate of Phase 2 on a quiet machine; make gate ARGS="only=G2-3,G2-6"
	$(BIN)/python -m experiments.phase2.gate $(ARGS)

test: lint types fast slow  ## style, types and all tests; continuous integration runs it

lint: $(STAMP)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy --strict atlas experiments/phase2

fast: $(STAMP)  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

slow: $(STAMP)  ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope -m slow  # fixtures of a module are made once

triton: $(STAMP)  ## the tests of the Triton kernels by triton's interpreter, on a CPU; installs triton (0.7 GB)
	@$(BIN)/python -m pip show --quiet triton || $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[triton]"
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/triton

extras: $(STAMP)  ## the tests of transformers and Optuna; installs both (160 MB)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[hf,optuna]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/integration/test_export.py tests/integration/test_sweep_search.py

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

speed: $(STAMP)  ## the speed comparison on a quiet machine; make speed ARGS="quick=true"
	@$(BIN)/python -m pip show --quiet titans-pytorch || $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m experiments.speed $(ARGS)

clean:  ## remove .venv and caches; keeps outputs/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "atlas needs Python >= 3.11; found $$(python3 --version 2>&1). Set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "atlas needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
