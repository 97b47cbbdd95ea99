"""A campaign against fedkd: thousands of hostile cases, each of which has to end as the command line promises.

    python scripts/fuzz.py [--cases 10000] [--seed 1] [--only inputs|folders|kills|plugins] [--jobs 2] [--keep DIR]
    python scripts/fuzz.py --seed 1 --case 1234        # one case again, told in full

Inputs: scenarios, overrides, data files, benches and words that are wrong or odd. Folders: runs and benches that
are damaged, then gone on with: refused, or the result of the undamaged one. Kills: runs that are killed, stopped
or out of disk at any moment, then resumed: the bytes of an unbroken run. Plug-ins: models, strategies, learners,
data sets and partitions that raise, leave, hang a little or return nonsense.

Exit statuses are 0, 2, 3 or 130; no traceback, no internal error, no message over three lines, no warning of a
library, nothing written outside the run folder. What breaks a rule is listed at the end with the command that
repeats it, and the exit status is 1.
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
