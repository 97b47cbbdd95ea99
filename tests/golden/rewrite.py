"""Write the figures of golden runs anew, after a change of behaviour that is meant.

    python tests/golden/rewrite.py [RUN OR METHOD …]

Figures that still agree with those kept are left as they are, so that the difference in review is the change.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

# As in the tests, and before torch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this working tree's fedkd

import golden_runs

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    names = sys.argv[1:] or [*golden_runs.RUNS, *golden_runs.METHODS]
    methods = golden_runs.kept_methods()
    for name in filter(golden_runs.METHODS.__contains__, names):
        methods[name] = golden_runs.method_figures(name)
    methods = {name: methods[name] for name in golden_runs.METHODS}
    lines = [f"  {json.dumps(name)}: {json.dumps(figures)}" for name, figures in methods.items()]
    golden_runs.OF_METHODS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for name in filter(golden_runs.RUNS.__contains__, names):
        kept, got = golden_runs.kept_figures(name), golden_runs.run_figures(name)
        lines = golden_runs.differences(kept, got)
        path = golden_runs.FOLDER / f"{name}.json"
        path.write_text(golden_runs.dump(golden_runs.renewed(kept, got)), encoding="utf-8")
        print(f"{name}: {f'{len(lines)} differences' if lines else 'as before'}")
        for line in lines if kept else ():
            print(f"  {line}")
