# Two commands for a newcomer; python3 (3.11 or later) and make are all that they need:
#
#   make demo   judges the attention kernels found on this machine, report in build/report.html
#   make test   lint, tests and doctests
#
# Both make .venv and install into it; a second run installs nothing until the requirements change.

PYTHON ?= python3
JOBS ?= 3
BIN := .venv/bin
# -qq leaves errors and nothing else
INSTALL := $(BIN)/python -m pip -qq install -c constraints.txt
# Peers bring frameworks of their own, which nothing else here is to depend on.
PEERS := .venv-peers
# The interpreter of earlier ones does not run beside NumPy 2.4.
TRITON := triton==3.9.0
TRITON_TESTS := tests/test_backends_gpu_kernels.py tests/test_backends_gpu_large.py

.PHONY: demo test test-slow kernels-test peers bench scale-test lint docs lab-runtime docs-test dist types clean

demo: .venv/demo.stamp
	@mkdir -p build
	$(BIN)/ia-core conform --html build/report.html

# Tests share the processors; a pool of threads in each of them would compete with the others.
test: .venv/dev.stamp lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	@echo "Installing the project and the kernels to judge ..."
	@$(INSTALL) -e '.[torch,jax,kernels,conformance]'
	@touch $@

.venv/dev.stamp: .venv/torch.stamp pyproject.toml
	@echo "Installing the project and its tests ..."
	@$(INSTALL) -e '.[dev]'
	@touch $@

# PyTorch comes first and by its pin: resolved among the others, its range may draw in a build with
# gigabytes of CUDA libraries.
.venv/torch.stamp $(PEERS)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	@echo "Making $(@D) and installing PyTorch (some minutes the first time) ..."
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip -qq install -c constraints.txt torch
	@touch $@

# For contributors.

# Every kernel of others that has an adapter: all clauses, and the examples of what is declared.
peers: $(PEERS)/peers.stamp
	@mkdir -p build
	$(PEERS)/bin/ia-core conform --html build/peers.html
	$(PEERS)/bin/pytest tests/test_peers.py tests/test_jax_modules.py

$(PEERS)/peers.stamp: $(PEERS)/torch.stamp pyproject.toml
	@echo "Installing the project and the kernels of others ..."
	@$(PEERS)/bin/python -m pip -qq install -c constraints.txt -e '.[dev,peers]'
	@touch $@

# What a position bias costs, hours for the whole grid; goes on where it was stopped. `make bench BENCH="--preset contract"`
# is the part that docs/performance.md begins with.
bench: .venv/dev.stamp
	$(BIN)/python benchmarks/bench_attention.py run $(BENCH)
	$(BIN)/python benchmarks/bench_attention.py report

# What takes minutes: processes that are killed, rings of them, kernels in interpreters, judgements in full.
test-slow: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests

# The kernels for NVIDIA's GPUs in Triton's interpreter; some minutes. Triton lies apart, because PyTorch would use it.
kernels-test: .venv/dev.stamp build/triton-site/stamp
	@PYTHONPATH=build/triton-site $(BIN)/python -c 'import triton'  # without it the tests skip
	PYTHONPATH=build/triton-site OMP_NUM_THREADS=1 $(BIN)/pytest -m slow $(TRITON_TESTS)

build/triton-site/stamp: Makefile
	@rm -rf build/triton-site
	@$(BIN)/python -m pip -qq install --no-deps --target build/triton-site $(TRITON)
	@touch $@

# What is slow of the tests past one machine: processes that are killed, four ranks, two processes of JAX; some minutes.
scale-test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/test_chunked.py tests/test_rings.py tests/test_scale.py tests/test_sweep.py

lint: .venv/dev.stamp
	$(BIN)/ruff check .

docs: .venv/dev.stamp
	rm -rf docs/api
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Python for the live pages, out of npm and PyPI unless LAB names a file or folder that has it; kept out of git, and
# the site is built without it as well.
lab-runtime: .venv/dev.stamp
	$(BIN)/python docs/lab/fetch_runtime.py $(LAB)

# The built site as a browser sees it; skips, with the reason, where there is no Chromium. Screenshots go to build/.
docs-test: docs
	$(BIN)/pytest docs/checks

dist: .venv/dev.stamp
	$(BIN)/python -m build

types: .venv/dev.stamp
	rm -rf build/types build/lib
	@$(INSTALL) --no-deps --target build/types .
	cd build && MYPYPATH=types ../$(BIN)/mypy --config-file ../pyproject.toml -p ia_core

clean:
	rm -rf .venv $(PEERS) build dist docs/_build docs/api *.egg-info
