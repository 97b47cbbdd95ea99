#!/usr/bin/env bash
# From a fresh clone to a result: ten clients, three architectures, non-IID digits, KnFu.
# Arguments are passed on to `fedkd run`, e.g. --engine inline or --set fusion.beta=2.
set -euo pipefail
source "$(dirname "$0")/setup.sh" report
exec .venv/bin/fedkd run scenarios/quickstart.toml "$@"
