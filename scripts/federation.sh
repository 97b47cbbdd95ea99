#!/usr/bin/env bash
# Run a scenario on a real SuperLink and SuperNodes, all of them on this machine, over TLS on loopback:
#
#     scripts/federation.sh SCENARIO.toml OUT [key=value …] [--keep DIR] [--port N] [--wait S] [--reply-within S]
#
# Every client is a node of its own, with its own samples and its own key. The result is the simulation's, to
# the byte. At the end, after Ctrl-C and after a failure too, no process of it is left, and no file outside OUT
# and DIR. What changes when the nodes are on several machines: docs/deployment.md.
set -euo pipefail
fedkd=$(realpath "$(dirname "$0")/..")
python=$fedkd/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3)
python=${PYTHON:-$python}
PYTHONPATH=$fedkd${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fedkd.deployment "$@"
