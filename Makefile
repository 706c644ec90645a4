# make demo   train a recogniser on rendered glyphs and report how good it got
# make test   every op on every backend that this machine has, every head, loss, miner and example, and the distributed path
# make test-rest   the other tests: all compilations for GPUs, all mutants, sweeps, kills and full disks
# make fuzz BUDGET=300   hostile calls of every op for so many seconds
# make sanitize-cpu      the tests of the ops and the fuzz with the C++ kernels under the address and UB sanitizers
# make wheels   what an installation without a compiler needs, in dist/
# make matrix   that wheel beside each supported Python, torch and Triton: an hour at most
# make lint | bench | clean
# make gpu | sanitize | profile OUT=folder    on a machine with a GPU
# make rehearse   what `make gpu` would meet, as far as a machine without a GPU can tell
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --quiet
TORCH := torch==2.13.0
TRITON := triton==3.6.0
SOURCES := setup.py pyproject.toml hyperkernels/_version.py $(shell find csrc -type f)
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-rest fuzz sanitize-cpu wheels matrix lint bench gpu sanitize profile rehearse clean

demo: $(VENV)/built
	$(RUN) -m examples.train_recognizer

# docs/develop/testing.md has the markers. What measures time runs when nothing else does.
PYTEST := OMP_WAIT_POLICY=passive $(RUN) -m pytest
WORKERS := -n auto --maxprocesses 8 --dist worksteal
test: $(VENV)/built
	$(PYTEST) $(WORKERS) -m "not (slow or gpu or rehearsal or interpreter or alone)"
	TRITON_INTERPRET=1 $(PYTEST) $(WORKERS) -m "interpreter and not slow"
	$(PYTEST) -m "alone and not slow" tests/test_speed.py

test-rest: $(VENV)/built
	$(PYTEST) $(WORKERS) -m "slow and not (gpu or rehearsal or interpreter)"
	TRITON_INTERPRET=1 $(PYTEST) $(WORKERS) -m "interpreter and slow"

fuzz: $(VENV)/built
	$(RUN) -m tests.fuzz --budget $(or $(BUDGET),300)

# A build of its own beside the usual one, which tests/sanitizers puts in that one's place.
SANITIZED := build/sanitized
SANITIZERS := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
$(SANITIZED)/built: $(VENV)/built $(SOURCES)
	HYPERKERNELS_BUILD=1 HYPERKERNELS_CXXFLAGS="$(SANITIZERS)" PATH="$(CURDIR)/$(VENV)/bin:$$PATH" \
	  $(RUN) setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	touch $@

sanitize-cpu: $(SANITIZED)/built
	HYPERKERNELS_CXXFLAGS="$(SANITIZERS)" $(RUN) -m tests.sanitizers $(SANITIZED) --budget $(or $(BUDGET),120)

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(RUN) -m tools.modules --check
	$(RUN) -m tools.matrix --check
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

bench: $(VENV)/built
	$(PIP) -r bench/requirements.txt || echo "some peers are not to be had here: they are named as absent"
	$(RUN) -m bench --json bench/out/cpu.json --plots bench/out

# With the Python, torch, Triton and nvcc that the machine has, and no network.
gpu:
	@test -n "$${OUT:-}" || { echo "usage: make gpu OUT=folder-for-results"; exit 2; }
	mkdir -p "$$OUT"
	HYPERKERNELS_BUILD=1 $(PYTHON) setup.py build_ext --inplace 2>&1 | tee "$$OUT/build.log"
	$(PYTHON) -m hyperkernels | tee "$$OUT/hyperkernels.txt"
	$(PYTHON) -c 'from hyperkernels import _backend as b; assert b.has_cuda_kernels(), "the CUDA kernels were not built"'
	$(PYTHON) -m pytest -m gpu tests --junitxml="$$OUT/gpu-tests.xml" 2>&1 | tee "$$OUT/gpu-tests.log"
	$(PYTHON) -m bench --device cuda --json "$$OUT/bench-cuda.json" --plots "$$OUT" 2>&1 | tee "$$OUT/bench-cuda.txt"

# Out-of-bounds accesses and races, on the smallest tests; without the caching allocator every tensor has its own bounds.
SMALL := test_widths or test_rows_off or test_edges or test_target_out_of_range or test_sizes or test_values
sanitize:
	@test -n "$${OUT:-}" || { echo "usage: make sanitize OUT=folder-for-results"; exit 2; }
	mkdir -p "$$OUT"
	for tool in memcheck racecheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
	  --target-processes all $(PYTHON) -m pytest -m gpu tests -k "$(SMALL)" 2>&1 | tee "$$OUT/$$tool.log"; done

profile:
	@test -n "$${OUT:-}" || { echo "usage: make profile OUT=folder-for-results"; exit 2; }
	mkdir -p "$$OUT"
	ncu --clock-control none --set full --target-processes all --kernel-name regex:_kernel --launch-count 200 \
	  --export "$$OUT/profile" --force-overwrite $(PYTHON) -m bench --device cuda --quick

# The packages of the GPU machine: 3 GB to download, 6 GB with what is built; `make clean` leaves them.
REHEARSAL := .rehearsal
REHEARSAL_PYTHON := $(lastword python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12))
GPU_STACK := torch==2.11.0 triton==3.6.0 $(addprefix nvidia-,cuda-nvcc==13.0.88 cuda-crt==13.0.88 nvvm==13.0.88 cuda-cccl==13.0.85)
rehearse: $(REHEARSAL)/ready
	bash tests/rehearsal/run.sh $(abspath $(REHEARSAL))

$(REHEARSAL)/ready: requirements.txt Makefile
	$(REHEARSAL_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { \
	  echo "make rehearse needs Python 3.12, which the GPU machine has, and $(REHEARSAL_PYTHON) is none:"; \
	  echo "name one with make rehearse REHEARSAL_PYTHON=/path/to/python3.12"; exit 2; }
	$(REHEARSAL_PYTHON) -m venv $(REHEARSAL)
	$(REHEARSAL)/bin/python -m pip install --disable-pip-version-check --quiet $(GPU_STACK) -r requirements.txt
	ln -sf libcudart.so.13 $(REHEARSAL)/lib/python3.12/site-packages/nvidia/cu13/lib/libcudart.so
	touch $@

# Where the machine's own torch sees a GPU it is used (its packages are put on the path; it may live in a virtual environment
# itself); elsewhere the pinned one is installed.
export SITE := import sysconfig; print(*dict.fromkeys(sysconfig.get_path(p) for p in ("purelib", "platlib")), sep="\n")
$(VENV)/ready: requirements.txt Makefile
	if $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; \
	then $(PYTHON) -m venv $(VENV) && $(PYTHON) -c "$$SITE" > "$$($(RUN) -c "$$SITE" | head -n 1)/machine.pth"; \
	else $(PYTHON) -m venv $(VENV) && $(PIP) $(TORCH); fi
	$(RUN) -c 'import triton' 2>/dev/null || $(PIP) $(TRITON) || echo "no Triton for this platform: its tests will be skipped"
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/built: $(VENV)/ready $(SOURCES)
	HYPERKERNELS_BUILD=1 PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) --no-build-isolation --no-deps -e .
	touch $@

# One wheel with the C++ kernels for every Python 3 and every torch from 2.10 on, one without them for every platform, and
# the source. auditwheel says which glibc the first needs.
WHEEL := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP:install=wheel) --no-build-isolation --no-deps --wheel-dir dist
wheels: $(VENV)/ready
	rm -rf dist
	HYPERKERNELS_BUILD=0 $(WHEEL) .
	$(WHEEL) .
	$(RUN) -m auditwheel show dist/*-linux_*.whl
	$(RUN) -m wheel tags --remove --platform-tag manylinux_2_28_$$(uname -m) dist/*-linux_*.whl
	$(RUN) setup.py --quiet sdist

matrix: $(VENV)/ready
	$(RUN) -m tools.matrix

clean:
	rm -rf $(VENV) build dist *.egg-info hyperkernels/lib*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
