#!/usr/bin/env bash
# benchmarks/gpu.sh [--tiny | --list | --packages VERSION]: tests and benchmarks for a machine with one GPU.
# Runs from a bare copy of the repository, without network or installation, in at most 8 minutes: tests/gpu, then the
# benchmarks in order of worth. Each has a time limit and writes its output to $OUT/<name>.txt (OUT=build/gpu); one that
# fails does not stop the others. The last lines, also in $OUT/summary.txt, are a table of seconds and exit codes.
#   --tiny              the same lines with the smallest settings on a CPU
#   --list              prints the commands and runs nothing; after --tiny, those of --tiny
#   --packages VERSION  on a machine with network: downloads the packages that a machine with only PyTorch,
#                       transformers and pytest-xdist lacks, for Python VERSION (3.12), to build/gpu-packages, and adds
#                       DeepSpeed from .venv, which is pure Python; copy that folder along
# PYTHON names the interpreter (python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

budget=480  # seconds for everything
packages=build/gpu-packages
python=${PYTHON:-python3}
out=${OUT:-build/gpu}

download() {
  local pinned name
  for name in datasets dill multiprocess omegaconf annotated-types pydantic pydantic_core typing-inspection; do
    pinned+=("$(grep -i "^${name/_/[_-]}==" constraints.txt)")
  done
  "$python" -m pip --disable-pip-version-check install --target "$packages" --no-deps --only-binary :all: \
    --python-version "$1" "${pinned[@]}"
  for name in deepspeed hjson; do
    cp -r .venv/lib/python3*/site-packages/"$name"* "$packages"
  done
}

tiny=
case ${1:-} in
  --tiny) tiny=yes; shift ;;
  --packages) download "${2:?the version of Python there, as in 3.12}"; exit ;;
esac
if [[ $tiny ]]; then
  budget=3600
  steps=20
  where=(--quick --threads 1)
  data=(--generated tiny)
else
  steps=200
  where=(--gpu)
  data=(--generated MiniLM)
fi

# Name, limit in seconds, arguments of Python. The figures of greatest worth come first.
lines() {
  line tests 140 -m pytest -q -p no:cacheprovider -p no:benchmark -n 8 tests/gpu
  line hf_trainer 120 -m benchmarks.hf_trainer --against c --schedule 1+1+1 --rounds 1 "${where[@]}" "${data[@]}"
  line loop 60 -m benchmarks.loop --rounds 1 --steps "$steps" "${where[@]}"
  line activation_cache 50 -m benchmarks.activation_cache --rounds 1 "${where[@]}"
  line cached_epoch 75 -m benchmarks.cached_epoch --rounds 1 "${where[@]}" "${data[@]}"
  line vocab_trimming 35 -m benchmarks.vocab_trimming --rounds 2 "${where[@]}" "${data[@]}"
  line flops 60 -m benchmarks.flops --rounds 1 "${where[@]}" "${data[@]}"
  line torch_compile 60 -m benchmarks.torch_compile --rounds 2 "${where[@]}" "${data[@]}"
}

show() {  # name, limit, arguments
  printf '%s: timeout %s %s' "$1" "$2" "$python"
  printf ' %q' "${@:3}"
  echo
}

run() {  # name, limit, arguments
  local name=$1 limit=$2 left=$((budget - SECONDS)) code=0 began=$SECONDS
  if [[ $tiny ]]; then limit=600; fi
  if ((limit > left)); then limit=$left; fi
  if ((limit < 5)); then
    printf '%-18s %5s  %s\n' "$name" - "no time left" >>"$out/summary.txt"
    return
  fi
  echo "== $name"
  timeout --kill-after=5 "$limit" "$python" "${@:3}" >"$out/$name.txt" 2>"$out/$name.log" </dev/null || code=$?
  tail -n 40 "$out/$name.txt"
  if ((code)); then
    tail -n 15 "$out/$name.log" | tee -a "$out/$name.txt"
  fi
  rm -f "$out/$name.log"
  printf '%-18s %5s  %s\n' "$name" $((SECONDS - began)) "$code" >>"$out/summary.txt"
}

line() { "$action" "$@"; }

if [[ ${1:-} == --list ]]; then
  action=show
  lines
  exit
fi
mkdir -p "$out"
rm -f "$out"/*.txt
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
if [[ -d $packages ]]; then PYTHONPATH+=:$PWD/$packages; fi
"$python" - >"$out/summary.txt" <<'EOF'
import torch
import transformers

card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"{card}, torch {torch.__version__}, transformers {transformers.__version__}")
EOF
printf '%-18s %5s  %s\n' name seconds code >>"$out/summary.txt"
action=run
lines
echo "== summary"
cat "$out/summary.txt"
