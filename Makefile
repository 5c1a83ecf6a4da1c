# make demo       teacher, student alone and HKD+KD on real images, with a table at the end
# make test       the suite, side by side on the cores
# make test-slow  what takes minutes: kills, engines, several processes
# make check      linting and types
# make docs       the documentation site, in site/; a dead link or a missing docstring fails
# make fuzz       changed files and requests, and bytes, at every reader of what comes from outside, for FUZZ_SECONDS
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= $(shell date +%s)

# Each test process has one core; more threads would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-slow check docs fuzz clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed-test
	$(PYTEST) -m "not slow" --numprocesses auto --dist loadfile

test-slow: .venv/installed-test
	$(PYTEST) -m slow

check: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed-test
	$(BIN)/python -m mkdocs build --strict

fuzz: .venv/installed-test
	mkdir -p build/fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz_files $$(($(FUZZ_SECONDS) / 2)) $(FUZZ_SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz_loaders each -max_total_time=$$(($(FUZZ_SECONDS) / 2)) \
		-artifact_prefix=build/fuzz/

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hkd needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache
