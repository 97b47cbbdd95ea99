#!/usr/bin/env bash
# The documentation as a site, on a fresh machine too: serve it at http://127.0.0.1:8000 (the default), build it, or
# test it.
#
#   bash scripts/docs.sh [serve] [OPTIONS OF mkdocs serve]
#   bash scripts/docs.sh build            into build/site, which opens from the folder
#   bash scripts/docs.sh test             runs every block of code and the notebooks, and builds the site
set -euo pipefail
what=serve
case ${1:-} in serve | build | test) what=$1; shift ;; esac
case $what in test) extra=test,docs ;; *) extra=docs ;; esac
source "$(dirname "$0")/setup.sh" "$extra"
export NO_MKDOCS_2_WARNING=1
case $what in
  serve) exec .venv/bin/python -m mkdocs serve "$@" ;;
  build) exec .venv/bin/python -m mkdocs build --strict "$@" ;;
  test) exec .venv/bin/python -m pytest -m docs tests/repository/test_docs_run.py "$@" ;;
esac
