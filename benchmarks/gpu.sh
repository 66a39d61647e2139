#!/bin/bash
# The GPU's tests and its table, in one call on a machine that has a GPU and PyTorch, and perhaps no network.
#
#   here, once:   benchmarks/gpu.sh wheels     (fills .whl with what that machine lacks: about 50 MB, for Python 3.12 on x86-64 Linux)
#   there:        OUT=results benchmarks/gpu.sh     (with .whl beside the repository's files)
#
# Where a tool carries the working tree there and sets OUT: the command is `bash benchmarks/gpu.sh`, and the ignored folder .whl goes along.
# It ends within nine minutes. In $OUT: tests.txt, gpu.txt (the table), gpu.json (everything), and the logs of what was started; each row is there
# as soon as it is measured. BENCH_COMMIT=$(git rev-parse --short HEAD) before the command says what was measured, where .git does not go along.
# Options go to the table: `bash benchmarks/gpu.sh --max-batch 128 --only serve` (python -m benchmarks.gpu --help). NO_TESTS=1 leaves the tests out.
set -euo pipefail
cd "$(dirname "$0")/.."

# What machines with PyTorch have, or what is large and needed by nothing here.
skip='torch|torchvision|triton|nvidia-.*|cuda-.*|numpy|scipy|sympy|mpmath|networkx|setuptools|hf-xet|huggingface-hub|fsspec|timm|pyyaml|tqdm|pygments|imageio|tifffile'

wheels() {
    rm -rf .whl && mkdir .whl
    {
        sed -n 's/^\([A-Za-z0-9_.-]*==[^ ;]*\).*/\1/p' locks/demo.txt
        sed -n 's/^\(\(pytest\|pytest-asyncio\|pytest-timeout\|pluggy\|iniconfig\|trustme\)==[^ ;]*\).*/\1/p' locks/test.txt
    } | grep -vE "^($skip)==" | sort -u >.whl/names.txt
    platforms=()
    for number in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${number}_x86_64"); done
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest .whl --requirement .whl/names.txt
    # Of scikit-image only the photographs are wanted.
    python3 - .whl/scikit_image-*.whl <<'PHOTOGRAPHS'
import re, sys, zipfile
from pathlib import Path
with zipfile.ZipFile(sys.argv[1]) as wheel, zipfile.ZipFile(".whl/photographs.zip", "w") as kept:
    kept.writestr("skimage/__init__.py", "")
    for name in filter(re.compile(r"skimage/data/(coffee|chelsea|rocket)\.\w+").fullmatch, wheel.namelist()):
        kept.writestr(name, wheel.read(name))
Path(sys.argv[1]).unlink()
PHOTOGRAPHS
    du -sh .whl
}

run() {
    out=${OUT:?the folder for the results}
    mkdir -p "$out"
    site=$(mktemp -d)
    if compgen -G '.whl/*.whl' >/dev/null; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
        python3 -m zipfile -e .whl/photographs.zip "$site"
    fi
    export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
    if [ -z "${NO_TESTS:-}" ]; then
        python3 -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch finds no NVIDIA GPU here")'
        # Other versions of other libraries have other warnings: here they are no errors. SIGINT, so that a test that hangs is named.
        timeout --signal=INT --kill-after=10 160 python3 -m pytest -v --tb=short --durations=5 -m gpu -W default -p no:cacheprovider \
            --continue-on-collection-errors tests/inference 2>&1 | tee "$out/tests.txt" || echo "the GPU's tests failed"
    fi
    timeout --kill-after=20 335 python3 -m benchmarks.gpu --out "$out" "$@" || { echo "ended with $?"; cat "$out/gpu.txt"; }
}

if [ "${1:-}" = wheels ]; then wheels; else run "$@"; fi
