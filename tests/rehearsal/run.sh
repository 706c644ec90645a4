#!/usr/bin/env bash
# run.sh STACK: build, import and test a copy of this tree with the GPU machine's packages, which `make rehearse` has
# installed in the virtual environment STACK. The copy lies there too, so that no other build is touched, and so do
# compiled objects and kernels, which the next run takes over.
set -euo pipefail
stack=$1
copy="$stack/source"
export PATH="$stack/bin:$PATH" CUDA_HOME HYPERKERNELS_BUILD=1 TRITON_CACHE_DIR="$stack/triton"
CUDA_HOME=$(python -c 'from importlib.util import find_spec as f; print(f("nvidia").submodule_search_locations[0] + "/cu13")')
# The STACK may lie in this tree, and is no part of it.
inside=$(realpath --relative-to=. "$stack")
[ -d /usr/lib/ccache ] && export PATH="/usr/lib/ccache:$PATH" CCACHE_BASEDIR="$copy" CCACHE_NOHASHDIR=1

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
test_() { python -m pytest -p no:cacheprovider "$@"; }

step "copying the tree"
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
tar -c --exclude='./.*' --exclude=./build --exclude='*.so' --exclude=__pycache__ --exclude="./$inside" . | tar -x -C "$copy"
cd "$copy"

step "building with CUDA"
python setup.py build_ext --inplace > "$stack/build.log" 2>&1 || { tail -n 60 "$stack/build.log"; exit 1; }

step "importing"
python -m hyperkernels
python -c 'from hyperkernels import _backend as b; assert b.has_cuda_kernels(), "the CUDA kernels were not built"'

step "tests of the CPU that are quick"
test_ -m "not slow" tests/{test_backend,kernels/unit_norm/test_unit_norm,nn/test_margin_softmax,margins/test_margins,kernels/margin_softmax/test_edges}.py

step "compiling and exporting, which that torch does otherwise"
test_ -m "not slow and not gpu" -k "compile or compiled or export" --ignore tests/rehearsal tests

step "collecting the tests of the GPU"
test_ -m gpu --collect-only tests > "$stack/collected.log" || { tail -n 60 "$stack/collected.log"; exit 1; }
tail -n 1 "$stack/collected.log"

step "launching every kernel without a GPU"
HYPERKERNELS_REHEARSAL=1 test_ -m rehearsal tests/rehearsal
step "rehearsed"
