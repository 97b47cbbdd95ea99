# Sourced by the other scripts: makes .venv where it is missing and installs fedkd with the extra $1 into it.
#
# On a Linux machine without an NVIDIA driver torch's CPU build is all that is needed; the one that pip takes by itself
# is some gigabytes larger. TORCH_BACKEND (auto, cpu, cu128, …) names another; whoever has told pip where to find packages
# is left to it.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: fedkd needs Python 3.11 or newer; set PYTHON to one (found: $("$python" --version 2>&1))" >&2
  exit 2
fi
if [ ! -x .venv/bin/python ]; then
  echo "making .venv and installing fedkd; this takes a few minutes the first time"
  "$python" -m venv .venv
fi
driver() { [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; }
told() { [[ $(env .venv/bin/python -m pip config list 2>/dev/null) =~ index-url|find-links ]]; }
if ! .venv/bin/python -c 'import torch' 2>/dev/null && [ "$(uname -s)" = Linux ] && ! told; then
  backend=${TORCH_BACKEND:-$(driver && echo auto || echo cpu)}
  echo "installing torch for '$backend'$(driver || echo ": no NVIDIA driver is found"); TORCH_BACKEND names another"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check uv &&
    .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend "$backend" torch torchvision ||
    echo "that did not work; pip takes the build that it finds" >&2
fi
# The stamp names what is installed, so that a second run starts at once.
stamp=.venv/installed-$1
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
  touch "$stamp"
fi
