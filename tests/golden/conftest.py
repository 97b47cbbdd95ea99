"""Let tests import `golden_runs`: in pytest's importlib mode this folder is not on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
