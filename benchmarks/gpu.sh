#!/usr/bin/env bash
# Everything that needs a GPU, in under eight minutes: first whether it is right, then how fast it is.
#
#   bash benchmarks/gpu.sh            # from the repository root, with the machine's own python3 (or PYTHON=…)
#   bash benchmarks/gpu.sh --dry      # the same on a CPU, tiny, without the packages that a GPU machine may lack
#
# It needs PyTorch, Triton, numpy, pyarrow, safetensors, tokenizers, pytest, rich, click, transformers and a C compiler;
# xxhash is built from pyarrow's own header where it is missing. Results go to $OUT, else benchmarks/results.
set -euo pipefail

main() { # a function, so that the script may be edited while it runs
    cd "$(dirname "$0")/.."
    PYTHON=${PYTHON:-python3}
    device=gpu
    patience=1
    export PYTHONPATH="$PWD"
    if [[ "${1:-}" == --dry ]]; then
        device=dry
        patience=5 # whether it is right, not how fast
        export PYTHONPATH="$PWD:$PWD/benchmarks/bare:$PWD/benchmarks/bare/absent"
        export CUDA_VISIBLE_DEVICES= # on the CPU, wherever it runs
        results=$(mktemp -d)
    elif ! "$PYTHON" -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then
        echo "no GPU here: --dry runs everything on the CPU" >&2
        exit 2
    else
        results=${OUT:-benchmarks/results}
    fi
    "$PYTHON" -c "import xxhash" 2>/dev/null || export PYTHONPATH="$PYTHONPATH:$PWD/benchmarks/bare"
    export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$(mktemp -d)}"
    export FORENSICS_GPU_SH=$device
    export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # other packages' plugins have nothing to do here, and some are hidden
    mkdir -p "$results"
    began=$SECONDS

    deadline=$((470 * patience)) # the whole, in under eight minutes

    part() { # name, seconds it may take, command
        local name=$1 limit=$(($2 * patience)) started=$SECONDS left=$((deadline - (SECONDS - began)))
        shift 2
        ((limit <= left)) || limit=$left
        echo "== $name"
        if ((limit < 5)); then
            echo "== $name: NOT RUN, the time is used up"
            failed+=("$name")
            return
        fi
        # at once: a run that is being trained takes SIGTERM for a Ctrl-C and ends in order
        if timeout -s KILL "$limit" "$@"; then
            echo "== $name: done in $((SECONDS - started)) s"
        else
            echo "== $name: FAILED ($?) after $((SECONDS - started)) s"
            failed+=("$name")
        fi
    }

    failed=()
    part correctness 200 "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu tests/observe/test_kernels.py -m gpu
    if [[ $device == gpu ]]; then
        part step 200 "$PYTHON" -m benchmarks.step --rounds 12 --limit 150 --json "$results/step-gpu.json"
        part attention 40 "$PYTHON" -m benchmarks.attention --rounds 9 --json "$results/attention-gpu.json"
        part saving 60 "$PYTHON" -m benchmarks.saving --rounds 3 --json "$results/saving-gpu.json"
        part replay 90 "$PYTHON" -m benchmarks.replay --rounds 2 --steps 40 --json "$results/replay-gpu.json"
    else
        part step 200 "$PYTHON" -m benchmarks.step --dry --rounds 2 --json "$results/step.json"
        part attention 60 "$PYTHON" -m benchmarks.attention --dry --rounds 3 --json "$results/attention.json"
        part saving 100 "$PYTHON" -m benchmarks.saving --dry --rounds 1 --json "$results/saving.json"
        part replay 100 "$PYTHON" -m benchmarks.replay --dry --rounds 1 --steps 8 --json "$results/replay.json"
    fi
    echo "== all in $((SECONDS - began)) s; results in $results"
    if ((${#failed[@]})); then
        echo "failed: ${failed[*]}" >&2
        exit 1
    fi
}

main "$@"
