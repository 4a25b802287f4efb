#!/usr/bin/env bash
# Makes the virtual environment, installs pinned dependencies and the project, and checks that GL can render.
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

"$PYTHON" - <<'PY' || exit 1
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"error: Python {sys.version.split()[0]} found, 3.10 to 3.12 needed: give another one, make PYTHON=python3.11 ...")
PY

echo "[setup] virtual environment in $VENV"
"$PYTHON" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --constraint constraints.txt)

# torch first and by itself: its wheel decides whether gigabytes of CUDA libraries come along.
echo "[setup] torch"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    "${PIP[@]}" torch --index-url "$TORCH_INDEX_URL"
else
    "${PIP[@]}" torch
fi
echo "[setup] dependencies and the project (a minute or two)"
"${PIP[@]}" --editable '.[dev]'

echo "[setup] software GL"
if "$VENV/bin/python" -m launch.check_gl; then
    exit 0
fi
packages="libegl1 libgl1 libgl1-mesa-dri libgles2"
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "[setup] installing $packages with apt-get"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
    exec "$VENV/bin/python" -m launch.check_gl
fi
echo "error: MuJoCo cannot render on this machine. Install software GL, then run make again:" >&2
echo "  Debian/Ubuntu: sudo apt-get install $packages" >&2
echo "  Fedora:        sudo dnf install mesa-libEGL mesa-dri-drivers mesa-libGLES" >&2
exit 1
