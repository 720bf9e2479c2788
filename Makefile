# make demo and make test do all the set-up first; they need git, make and Python 3.10 or newer
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DEMO_STAMP := $(VENV)/.ready-demo
# pip leaves the bytecode to the first import; where that may not be written, every process compiles all it imports
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-gpu test-fake-gpu test-python test-bare lint docs setup wheels clean

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(DEMO_STAMP))  ## without the tools for development, if they are not there yet
	$(BIN)/fastft demo

test: export PYTHONUNBUFFERED :=  # output is buffered, as where nobody has set this
# tests make and remove many small files, 1.2 GB at a time, which a disk slows down: in memory, if 8 GB are free
test: export PYTEST_DEBUG_TEMPROOT ?= $(shell free=$$(awk '/^MemAvailable/ {print $$2}' /proc/meminfo 2>/dev/null); \
	room=$$(df -Pk /dev/shm 2>/dev/null | awk 'END {print $$4}'); \
	[ "$${free:-0}" -ge 8000000 ] && [ "$${room:-0}" -ge 4000000 ] && echo /dev/shm)
test: setup  ## in two processes, each test file in one of them; a thread each is faster than two that share both cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## tests that take minutes: kill -9 at random steps, all recipes, fuzzing; FASTFT_EXTENT=60 for hours of it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not gpu" --timeout 3600

test-gpu:  ## kernels, loader, step and trainer on a CUDA card, without set-up: of a borrowed card's own Python, if there is no .venv
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest tests/gpu -m gpu -rs --durations 0 --timeout 540

test-fake-gpu:  ## PyTorch's CUDA build (6 GB of wheels) under a card that only answers: waits, launches, memory, capture, processes
	bash .ci/test-fake-gpu $(TESTS)

test-python:  ## set-up and tests in a fresh environment: make test-python VERSION=3.13; without VERSION, every Python found
	bash .ci/test-python $(VERSION)

test-bare:  ## the README's commands and its lines for pip in an empty Debian; root and debootstrap only
	bash .ci/test-bare

wheels:  ## dist/: fastft with libjpeg-turbo, and FFCV, for machines without a compiler; VERSION=fastft: without FFCV
	bash .ci/wheels $(VERSION)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## build/site; a dead link, a page outside the navigation or a misspelt word is an error
	$(BIN)/python docs/spelling.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/setup
	bash .ci/setup "$(PYTHON)" "$(VENV)"
	@touch $@

$(DEMO_STAMP): pyproject.toml .ci/setup
	bash .ci/setup "$(PYTHON)" "$(VENV)" demo
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
