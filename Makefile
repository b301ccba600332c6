# make demo: the whole path on real data in minutes.  make test: everything a change must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs install install-dev clean-caches

demo: install
	$(BIN)/compress run pipelines/quickstart.yaml

# Each process computes on one thread: the networks of the tests are small. Files are handed out in the
# order of tests/conftest.py. What concerns one package alone: make test TESTS=tests/engine
TESTS := tests
test: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder $(TESTS)

# Writes what `test` only checks.
lint: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation, from docs/ and the code, into site/.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean-caches:
	rm -rf .mypy_cache .ruff_cache .pytest_cache build *.egg-info
