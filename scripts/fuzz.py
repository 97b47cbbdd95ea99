"""A campaign against fedkd: thousands of hostile cases, each of which has to end as is promised.

    python scripts/fuzz.py [--cases 10000] [--seed 1] [--only KIND] [--jobs 2] [--keep DIR]
    python scripts/fuzz.py --seed 1 --case 1234        # one case again, told in full

Kinds of cases:
    inputs   scenarios, overrides, data files, benches and words that are wrong or odd
    folders  runs and benches that are damaged, then gone on with: refused, or the undamaged one's result
    kills    runs that are killed, stopped or out of disk at any moment, then resumed: an unbroken run's bytes
    plugins  models, strategies, learners, data sets and partitions that raise, leave or return nonsense
    rows     tables, texts and series whose file is wrong or odd, and scenarios made from them

Exit statuses are 0, 2, 3 or 130; there is no traceback, no internal error, no message over three lines, no
warning of a library, and nothing is written outside the run folder. What breaks a rule is listed at the end
with the command that repeats it, and the exit status is 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

from campaign.campaign import main  # noqa: E402, the folder is on the path only now

if __name__ == "__main__":
    sys.exit(main())
