#!/usr/bin/env bash
# All that needs a GPU, on one card in at most 20 minutes: the CUDA tests, the benchmarks of loss,
# labelling, loader and step, and steps of ResNet-50 at 224 px by precision, compiled or not, crops
# cut in the workers or on the device. Each job leaves one JSON file; a job whose file is there is
# not run again, so the script goes on where it was stopped.
#
#   bash benchmarks/gpu.sh OUT               on a GPU; OUT/*.json are for docs/results/gpu/
#   SMALL=1 DEVICE=cpu bash benchmarks/gpu.sh OUT      the same jobs at their smallest, on the CPU
#
# Wants ferkd and its tests installed: pip install ".[all,test]".
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results}
device=${DEVICE:-cuda}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
workers=${WORKERS:-$(nproc)}
limit=${LIMIT:-300} # seconds a job may take
failed=0

if [ -n "${SMALL:-}" ]; then
  student=timm/resnet10t; teacher="timm/resnet10t?random=0"; size=64; batch=16; workers=1
  photos=(--photos 8 --stored-crops 4 --classes 8); steps=(--steps 1 --repeats 1)
  label=(--photos 32 --crops 2 --repeats 1 --batch-size 8); loader=(--photos 8 --batches 2 --batch-size 8 --repeats 1)
  loss=(--classes 100 --batch-size 16 --repeats 2); precisions="fp32"; modes="plain"
  [ "$device" = cpu ] || precisions="fp32 bf16"
else
  student=timm/resnet50; teacher="timm/resnet152?random=0"; size=224; batch=256
  photos=(--photos 512); steps=(--steps 10 --repeats 3)
  label=(--photos 64 --crops 50 --repeats 3 --batch-size 256); loader=(--photos 256 --repeats 3)
  loss=(--repeats 20); precisions="fp32 bf16"; modes="plain compiled"
fi

job() { # NAME COMMAND...: its standard output into NAME.json
  local name=$1
  shift
  if [ -s "$out/$name.json" ]; then
    echo "$name: done before"
    return
  fi
  echo "$name: $*"
  if timeout "$limit" "$@" >"$out/$name.part" 2>"$out/$name.log"; then
    mv "$out/$name.part" "$out/$name.json"
  else
    echo "$name: failed, see $out/$name.log"
    tail -n 3 "$out/$name.log"
    rm -f "$out/$name.part"
    failed=$((failed + 1))
  fi
}

tests() { # the tests that name CUDA, as one JSON object
  local log="$out/tests.txt"
  python -m pytest -k "cuda or device" -rs >"$log" 2>&1
  local status=$?
  python - "$log" "$status" <<'PY'
import json, re, sys
text, status = open(sys.argv[1], encoding="utf-8").read(), int(sys.argv[2])
counts = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
print(json.dumps({"command": "pytest -k 'cuda or device'", "status": status, **counts}))
PY
  return $status
}

hardware() {
  python - "$device" <<'PY'
import json, sys
import torch
from ferkd.study.bench.measuring import machine
cuda = sys.argv[1].startswith("cuda") and torch.cuda.is_available()
card = torch.cuda.get_device_properties(0) if cuda else None
print(json.dumps({**machine(), "device": card.name if card else "cpu",
                  "device_memory": card.total_memory if card else None}))
PY
}
export -f tests hardware
export out device

job hardware bash -c hardware
job tests bash -c tests
job loss ferkd bench loss --device "$device" "${loss[@]}" --json
for precision in $precisions; do
  job "label-$precision" ferkd bench label --device "$device" --precision "$precision" \
    --teacher "$teacher" --image-size $size --workers "$workers" "${label[@]}" --json
done
job loader ferkd bench loader --image-size $size --workers "0,$workers" "${loader[@]}" --json
for precision in $precisions; do
  for mode in $modes; do
    for cut in workers device; do
      flags=()
      [ "$mode" = plain ] || flags=(--compile)
      job "step-$precision-$mode-$cut" ferkd bench step --device "$device" --precision "$precision" \
        --student $student --teacher "$teacher" --image-size $size --batch-size $batch \
        --workers "$workers" --cut $cut "${flags[@]}" "${photos[@]}" "${steps[@]}" --json
    done
  done
done
echo "$failed jobs failed"
exit $((failed > 0))
