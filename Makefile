# `make demo` and `make test` set everything up by themselves; nothing is installed outside .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
# Threads that spin while they wait starve each other where several processes share few cores.
export OMP_WAIT_POLICY := PASSIVE
# One OpenMP thread per worker: two workers with two threads each on two cores wait for one another, 5 x slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup toolchain demo test test-fast guards bench clean build_segments clean_segments

help:  ## what can be made
	@sed -n 's/^\([a-z_-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## .venv with everything in it; again only when a version changed

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "parity needs Python 3.11 or newer; PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[test,dev]"
	@touch $@

demo: setup  ## hold four ports of a trained keyboard model against the reference, with a report
	@chip="--cand cvi"; $(BIN)/parity toolchain install tpu-mlir || { chip=; \
	  echo "cvi: left out, the toolchain cannot be installed here (see above)" >&2; }; \
	set -x; $(BIN)/parity run --ref torch --cand segmented --cand onnx --cand prefilled $$chip \
	  --out out/demo-$$(date +%Y%m%d-%H%M%S)

toolchain: setup  ## compiler and simulators of real chips, in the cache folder; without them their tests skip
	@$(BIN)/parity toolchain install tpu-mlir || echo "toolchain: NOT INSTALLED, see above" >&2

guards: setup  ## style, types and the walls between the rooms
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: guards toolchain  ## every test
	$(PYTEST)

test-fast: setup  ## the tests that take seconds
	$(PYTEST) -m "not slow"

bench: setup  ## ratios of speed, printed
	@for file in tests/bench/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

DEVICE ?= cv181x
QUANT ?= BF16
MODEL ?= klm-tiny
WEIGHTS ?=
SEGMENTS := out/segments

build_segments: setup toolchain  ## every segment of MODEL for DEVICE in QUANT; what is there already takes a second
	$(BIN)/parity compile --model $(MODEL) $(if $(WEIGHTS),--weights $(WEIGHTS)) --chip $(DEVICE) --mode $(QUANT) \
	  --out $(SEGMENTS)/$(MODEL)-$(DEVICE)-$(QUANT)

clean_segments:  ## the compiled segments
	rm -rf $(SEGMENTS)

clean: clean_segments  ## what was made: .venv, results, caches of tools
	rm -rf $(VENV) out build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
