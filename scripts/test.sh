#!/usr/bin/env bash
# Run the test suite, on as many processes as there are cores, four at most. Arguments are passed on to pytest,
# e.g. -k knfu, or -m slow for the long anchors.
set -euo pipefail
source "$(dirname "$0")/setup.sh" test
exec .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
