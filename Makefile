# Two commands do everything, set-up included: `make run` and `make test`.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_OFFLINE ?= 1

.PHONY: run test install lint ui clean

run: install  ## train, measure and compare the orders of params.yaml, then print who won and how sure that is
	@$(BIN)/trainorder run

test: install lint  ## style, types, layers, then every test, real servers included
	@$(BIN)/python -m pytest -n 2 --dist loadfile

ui: install  ## open MLflow and Prefect on loopback over what was run
	@$(BIN)/trainorder ui

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright --level error
	@$(BIN)/lint-imports

install: .venv/.installed  ## the environment in .venv; a second call does nothing

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trainorder needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:  ## remove what runs made, keep the environment and the DVC cache
	rm -rf checkpoints runs evaluations reports data/tasks data/sft data/tokenizer data/summary.json .fingerprints
