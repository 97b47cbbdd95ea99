#!/usr/bin/env bash
# Run the test suite, on a process more than there are cores, since some tests wait, four at most. Arguments are passed
# on to pytest, e.g. -k knfu, -m slow for the long anchors, or -m alone --numprocesses 0 for what starts Ray or Flower's
# runtime for itself.
set -euo pipefail
source "$(dirname "$0")/setup.sh" test
# A hundred processes import fedkd, and three rewrite all assertions, which is quick where somebody has compiled them.
unset PYTHONDONTWRITEBYTECODE
processes=$(.venv/bin/python -c 'import os; print(min((os.cpu_count() or 1) + 1, 4))')
exec .venv/bin/python -m pytest --numprocesses "$processes" --dist loadfile --no-loadscope-reorder "$@"
