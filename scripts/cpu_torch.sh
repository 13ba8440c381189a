#!/usr/bin/env bash
# .venv with torch as PyTorch's own index has it for CPUs, before `make` fills it with the rest.
# TORCH_INDEX is that index; without it pip takes the build that its own index has.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet torch -c constraints.txt \
  ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
