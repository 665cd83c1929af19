#!/usr/bin/env bash
# What only a card can tell, in one call: the tests that need one, the selftest, and every time on a GPU that
# docs/performance.md asks for, as JSON in benchmarks/results. Some 20 minutes on an H100. What fails stops nothing else.
#
#     PYTHON=.venv/bin/python bash benchmarks/gpu.sh [tests selftest training oml evaluation precision]
set -u
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=. TRITON_INTERPRET=0
python=${PYTHON:-python} results=benchmarks/results failed=()

tests() {
    "$python" -m pytest -q -p no:cacheprovider -W default tests/meta/test_static_update.py tests/meta/test_triton.py \
        tests/evaluate/test_fused_head.py tests/test_machine.py -k "replayed or give_way or triton or engine or kernel or gpu"
}
selftest() { "$python" -m anml selftest --device cuda --json $results/selftest-gpu.json; }
training() {
    "$python" benchmarks/train_engines.py --device cuda --models anml sanml --engines reference fast sweep triton \
        --graphs sweep triton --branches 1 4 8 16 --output $results/train-engines-gpu.json
}
oml() {
    "$python" benchmarks/train_engines.py --device cuda --models oml --engines reference fast compiled \
        --graphs fast compiled --branches 1 4 8 --output $results/train-engines-gpu-oml.json
}
evaluation() { "$python" benchmarks/evaluate_engines.py --sweeps; }
precision() { "$python" benchmarks/precision.py --device cuda --output $results/precision-gpu.json; }

[ $# -gt 0 ] || set -- tests selftest training oml evaluation precision
for part in "$@"; do
    echo "== $part"
    "$part" || failed+=("$part")
done
[ ${#failed[@]} = 0 ] || { echo "FAILED: ${failed[*]}"; exit 1; }
