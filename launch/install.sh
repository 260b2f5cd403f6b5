#!/usr/bin/env bash
# launch/install.sh [EXTRA...]: makes .venv with this package in editable mode and the named extras of pyproject.toml.
# All versions are those of constraints.txt. torch comes first, because only its build depends on the machine: the one
# for GPUs where nvidia-smi answers, the one for CPUs, a tenth of the size, on any other Linux, the only one on macOS.
# DEVICE=gpu or DEVICE=cpu decides instead, for machines other than this one. PYTHON names the interpreter to use.
# A second run changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'install: %s\n' "$*" >&2; }
pip() { .venv/bin/python -m pip --disable-pip-version-check install "$@"; }
pinned() { grep "^$1==" constraints.txt; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: ${PYTHON:-no Python here} is not 3.11 or newer; name one that is: PYTHON=/path/to/python3.11" >&2
  return 1
}

device() {
  case ${DEVICE:-} in
    cpu | gpu) echo "$DEVICE" ;;
    "") if nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi ;;
    *) echo "error: DEVICE: $DEVICE is neither cpu nor gpu" >&2; return 1 ;;
  esac
}

install_torch() {
  local torch
  torch=$(pinned torch)
  if [[ $(uname -s) != Linux ]]; then
    pip "$torch"
  elif [[ $device == gpu ]]; then
    say "installing the GPU build of $torch"
    pip "$torch"
  # By itself: with constraints, pip reports a missing build as a conflict.
  elif ! PIP_CONSTRAINT=/dev/null pip --no-deps "$torch+cpu"; then
    say "pip finds no CPU build of $torch: uv fetches it from PyTorch's own index"
    pip "$(pinned uv)"
    .venv/bin/uv pip install --python .venv/bin/python --no-deps --torch-backend=cpu "$torch"
  fi
}

device=$(device)
export PIP_CONSTRAINT=$PWD/constraints.txt  # for pip's builds too, and instead of any that the machine sets
extras=$(IFS=,; echo "$*")
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  say "making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
fi
# Before torch: after it, pip reports all that torch still lacks as an error, though the last line brings it.
pip "$(pinned setuptools)"
install_torch
# No build isolation: the build uses the pinned setuptools, and a later run needs no network.
pip --no-build-isolation --editable ".${extras:+[$extras]}"
touch .venv/.installed
say "done"
