# make demo | make test: each sets everything up first, on a machine with nothing but git, make and Python >= 3.10
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test test-slow lint docs setup clean

demo: setup
	$(BIN)/fastft demo

test: setup
	$(BIN)/python -m pytest

test-slow: setup  ## proofs that take minutes: kill -9 at random steps, all recipes, long fuzzing
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## build/site; a dead link or a page outside the navigation is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/setup
	bash .ci/setup "$(PYTHON)" "$(VENV)"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
