#!/usr/bin/env bash
# Run a scenario, or a Flower app of one's own, on Flower's own simulation runtime:
#
#     scripts/flower.sh SCENARIO.toml OUT [key=value …]    keys of the scenario
#     scripts/flower.sh APP_FOLDER NODES [key=value …]     keys of the app's [tool.flwr.app.config], as TOML has them
#
# Flower keeps a background SuperLink and a copy of the app in its home folder; both live in a temporary
# folder here and are gone when the run ends. The result of a scenario is the same as fedkd's engines give.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: scripts/flower.sh SCENARIO.toml OUT [key=value …], or APP_FOLDER NODES [key=value …]" >&2
  exit 2
fi
fedkd=$(realpath "$(dirname "$0")/..")
command -v flwr >/dev/null || PATH=$fedkd/.venv/bin:$PATH

home=$(mktemp -d)
stop() {
  pkill -f -- "--log-file $home/" || true
  rm -rf "$home"
}
trap stop EXIT

export FLWR_HOME=$home FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 RAY_ADDRESS=local
# Ports of its own: at the usual ones another SuperLink may listen, which ends when whoever started it does.
read -r FLWR_LOCAL_SUPERLINK_HTTP_API_PORT FLWR_LOCAL_CONTROL_API_PORT < <(python - <<'PY'
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(server.getsockname()[1] for server in free))
PY
)
export FLWR_LOCAL_SUPERLINK_HTTP_API_PORT FLWR_LOCAL_CONTROL_API_PORT

# Flower gives its SuperLink 15 s to start, which a busy machine may not manage at once.
run() {
  for attempt in 1 2 3 4; do
    if { flwr run "$@" 2>&1 >&3 | tee "$home/said" >&2; } 3>&1; then
      return
    fi
    grep -q "Failed to start local SuperLink" "$home/said" || return 1
  done
  return 1
}

if [ -d "$1" ]; then
  app=$(realpath "$1") nodes=$2
  shift 2
  run "$app" --stream ${1:+--run-config "$*"} --federation-config "num-supernodes=$nodes"
  if [[ $(flwr list --format json) != *finished:completed* ]]; then
    echo "error: the run did not finish; see the log above" >&2
    exit 3
  fi
  exit
fi
scenario=$(realpath "$1")
out=$(realpath -m "$2")
shift 2
overrides="$*"
clients=$(python - "$scenario" $overrides <<'PY'
import sys
from fedkd.plan.load import load_scenario
print(load_scenario(sys.argv[1], sys.argv[2:]).data.clients)
PY
)
run "$fedkd" --stream \
  --run-config "scenario=\"$scenario\" out=\"$out\" set=\"$overrides\"" \
  --federation-config "num-supernodes=$clients"
if [ ! -e "$out/summary.json" ]; then
  echo "error: the run did not finish; see the log above" >&2
  exit 3
fi
