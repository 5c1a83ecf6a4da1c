# make demo       teacher, student alone and HKD+KD on real images, with a table at the end
# make test       the suite, side by side on the cores
# make test-slow  what takes minutes: kills, engines, several processes
# make test-lowest  tests of what needs no export, with the lowest versions that pyproject.toml allows (FLOORS=torch: of torch alone)
# make check      format, linting, types, spelling, notebooks without metadata
# make docs       the documentation site, in site/; a dead link or a missing docstring fails
# make dist       wheel and source distribution, in dist/
# make fuzz       changed files and requests, and bytes, at every reader of what comes from outside, for FUZZ_SECONDS
# PYTHON=python3.12 makes .venv, where there is none, with another interpreter than python3
PYTHON ?= python3
FLOORS ?= all
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= $(shell date +%s)

# Each test process has one core; more threads would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

LOWEST := tests/methods tests/holistic tests/numerics tests/models tests/analysis tests/report \
	tests/test_distiller.py tests/test_runs.py tests/test_head.py
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-lowest check docs dist fuzz clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed-test
	$(PYTEST) -m "not slow" --numprocesses auto --dist loadfile

test-slow: .venv/installed-test
	$(PYTEST) -m slow --numprocesses auto --dist loadfile --durations 15

test-lowest:
	mkdir -p build
	$(PYTHON) -m tests.packaging.floors $(FLOORS) > build/floors.txt
	$(PYTHON) -m venv --clear build/lowest
	build/lowest/bin/python $(PIP_INSTALL) --constraint build/floors.txt --editable '.[report,tensorboard]' hypothesis pytest pytest-xdist
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -m "not slow" --numprocesses auto --dist loadfile $(LOWEST)

check: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	git ls-files -z '*.ipynb' | xargs -0 -r $(BIN)/nbstripout --keep-output --keep-count --verify

docs: .venv/installed-test
	$(BIN)/python -m mkdocs build --strict

dist: .venv/installed-test
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

fuzz: .venv/installed-test
	mkdir -p build/fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz_files $$(($(FUZZ_SECONDS) / 2)) $(FUZZ_SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz_loaders each -max_total_time=$$(($(FUZZ_SECONDS) / 2)) \
		-artifact_prefix=build/fuzz/

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hkd needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python $(PIP_INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache
