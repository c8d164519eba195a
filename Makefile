# make quickstart   train, test and report a tiny LLaVA on the small world (CPU, minutes)
# make test         lint, types, tests
# make test-faults  what runs survive, at full numbers: kills, full disks, NaN, damaged files; prints a table
# make env          the locked environment in .venv (every target makes it first)
# make backbones    rebuild the tiny pretrained backbones that ship with the package
# make lock         resolve pyproject.toml anew into requirements.lock

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
.PHONY: quickstart test test-faults env backbones lock world

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
HARDWARE ?= cpu
WORLD := data/world
BACKBONE_WORLD := data/backbones
CROPS := data/crops
BACKBONES := lightning_mllm/backbones
IMAGES ?= 20000

quickstart: env world
	$(BIN)/mllm run experiments/quickstart/llava --hardware $(HARDWARE)
	echo "Report: runs/quickstart/llava/report.html"

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-faults: env
	MLLM_FULL=1 $(BIN)/python -m pytest -m fault --numprocesses 2 --dist loadfile --timeout 3600

env: $(VENV)/.stamp

world: $(WORLD)/world.json

backbones: env
	$(BIN)/mllm world $(BACKBONE_WORLD) --images 12000 --texts 120000 --seed 7
	$(BIN)/mllm world $(CROPS) --images 30000 --crops --seed 8
	for name in llama opt t5; do
	  $(BIN)/python -m lightning_mllm.export.backbones tokenizer $(BACKBONE_WORLD) --style $$name --to $(BACKBONES)/$$name
	done
	$(BIN)/mllm run experiments/backbones/clip --hardware $(HARDWARE) --hardware.micro_batch=256 --hardware.eval_batch=128
	$(BIN)/mllm run experiments/backbones/llama --hardware $(HARDWARE) --hardware.micro_batch=32
	$(BIN)/mllm run experiments/backbones/opt --hardware $(HARDWARE) --hardware.micro_batch=32
	$(BIN)/mllm run experiments/backbones/t5 --hardware $(HARDWARE) --hardware.micro_batch=96
	for name in clip llama opt t5; do
	  $(BIN)/python -m lightning_mllm.export.backbones pack runs/backbones/$$name --to $(BACKBONES)/$$name
	done

lock: $(UV)
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url -o requirements.lock
	$(UV) pip compile requirements/uv.in --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url -o requirements/uv.txt

$(WORLD)/world.json: | $(VENV)/.stamp
	$(BIN)/mllm world $(WORLD) --images $(IMAGES) --texts 2000 --seed 0

$(UV): requirements/uv.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	touch $@

$(VENV)/.stamp: $(UV) requirements.lock pyproject.toml
	[ -x $(BIN)/python ] || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@
