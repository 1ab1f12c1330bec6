#!/bin/sh
# Builds the virtual environment. Without an NVIDIA driver it takes torch's CPU build, which spares several GB.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH_CPU="torch==2.13.0+cpu"

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

if ! command -v nvidia-smi >/dev/null 2>&1 && ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    # A wheel at hand first; then PyTorch's own index; then whatever the configured index offers.
    pip install -q "$TORCH_CPU" 2>/dev/null ||
        pip install -q --extra-index-url https://download.pytorch.org/whl/cpu "$TORCH_CPU" ||
        pip install -q "torch>=2.11,<2.14"
fi
pip install -q -e ".[dev]"
