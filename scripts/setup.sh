# Sourced by the other scripts: makes .venv where it is missing and installs fedkd with the extra $1 into it.
#
# On a machine without an NVIDIA driver the CPU build of torch is all that is needed; pip takes whichever build
# its configured index offers.
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
# The stamp names what is installed, so that a second run starts at once.
stamp=.venv/installed-${1:-run}
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
  touch "$stamp"
fi
