#!/usr/bin/env bash
# Ten minutes of a GPU well spent: the kernels' tests, parity, the region without syncs, and the figures of docs/cuda.md.
#
#     scripts/device_check.sh [FOLDER]          # FOLDER: $OUT, else runs/device
#
# One command, less than nine minutes on one H100 or H200, no network, no make, nothing installed: it needs a python3 with
# what scripts/lent.txt names, pytest's plug-ins among it. Each part has a time of its own, writes what it has, and the
# next goes on if one fails. FOLDER gets summary.json, log.txt and what the benchmarks write: eight files at most.
#
#     DEVICE=cuda   PYTHON=python3   MINUTES=8.5    DEVICE=cpu TINY=1 rehearses it with sizes of seconds, and gives each
#                                                   part four times as long: others may use the CPU, too
set -uo pipefail
out=$(realpath -m "${1:-${OUT:-$(dirname "$0")/../runs/device}}")
cd "$(dirname "$0")/.." || exit
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
tiny=${TINY:-}
longer=${tiny:+4} longer=${longer:-1}
end=$(($(date +%s) + $("$python" -c "print(int(60 * ${MINUTES:-8.5}))")))
mkdir -p "$out"
log=$out/log.txt
: > "$log"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
rows=()

# part NAME SECONDS COMMAND...: runs it, at most so long and not past the end, and notes how it went.
part() {
    local name=$1 limit=$(($2 * longer)) left code start
    shift 2
    left=$((end - $(date +%s)))
    if ((left < 5)); then
        code=-1
        start=$(date +%s)
        echo "== $name: no time is left" | tee -a "$log"
    else
        ((left < limit)) && limit=$left
        echo "== $name: $*" | tee -a "$log"
        start=$(date +%s)
        timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$log"
        code=${PIPESTATUS[0]}
    fi
    rows+=("{\"part\": \"$name\", \"exit\": $code, \"seconds\": $(($(date +%s) - start)), \"limit\": $limit}")
    local IFS=,
    printf '{"device": "%s", "parts": [%s]}\n' "$device" "${rows[*]}" > "$out/.summary" && mv "$out/.summary" "$out/summary.json"
}

rounds=5 sizes=3b case=video-64x256 picture=image-4096 dtypes=bf16 ops=(merge dpc_knn group_mean rotary)
kernels=(tests/backends/test_triton_dpc_knn.py tests/backends/test_triton_group_mean.py tests/backends/test_triton_rotary.py)
op_sizes=()
# Six processes compile kernels at the same time. A session that has to stop says what has failed until then.
tests=(-m pytest -q -p no:cacheprovider -m "not slow" --timeout 100 -n 6)
if [ -n "$tiny" ]; then
    rounds=1 sizes=tiny case=video-3x16 picture=image-16 ops=(group_mean) op_sizes=(--sizes tiny)
    kernels=(tests/backends/test_triton_group_mean.py) tests=("${tests[@]:0:${#tests[@]}-2}")
fi
models=(scripts/bench_prefill.py --device "$device" --sizes "$sizes" --rounds "$rounds" --output "$out/prefill.json")

part facts 60 "$python" -c "
import importlib.metadata, json, sys
from ppe_npu.backends import device
found = {'python': sys.version.split()[0], **device.describe(device.resolve('$device'))}
for name in ('torch', 'triton', 'transformers', 'accelerate', 'flash_attn', 'liger_kernel'):
    try: found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: pass
json.dump(found, open('$out/facts.json', 'w'), indent=1); print(found)"
command -v nvidia-smi > /dev/null && part nvidia-smi 20 nvidia-smi
part kernels 120 "$python" "${tests[@]}" --session-timeout 105 "${kernels[@]}"
part operators 90 "$python" scripts/bench_ops.py --device "$device" --ops "${ops[@]}" ${op_sizes[@]+"${op_sizes[@]}"} \
    --rounds "$rounds" --output "$out/ops.json"
for work in prefill decode train; do
    part "$work" 110 "$python" "${models[@]}" --cases "$case" --parts "$work" --seconds 60
done
# Of a picture: PixelPrune leaves videos as they are.
part picture 110 "$python" "${models[@]}" --cases "$picture" --seconds 20
part parity 90 "$python" -m ppe_npu.cli parity --device "$device" --dtypes "$dtypes"
part bundle 90 "$python" -m ppe_npu.cli parity check tests/data/parity_cpu --device "$device"
[ -n "$tiny" ] || part no-sync 60 "$python" "${tests[@]}" tests/models/test_no_sync.py -k "cuda"

echo "== $out: $(ls "$out" | tr '\n' ' ')"
cat "$out/summary.json"
# Fails where a part failed, so that nobody takes an empty folder for a result.
! grep -qE '"exit": -?[1-9]' "$out/summary.json"
