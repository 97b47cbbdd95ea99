#!/usr/bin/env bash
# Check style, layout and types: ruff and mypy, at the versions that pyproject.toml names.
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
