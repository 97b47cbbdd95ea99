"""What the time of a bench's cells is made of.

    python scripts/bench/cell.py [BENCH.toml] [--cells 33] [--set key=value …]

Cells spread evenly over the bench run one after the other in this process, as in a worker of ``fedkd bench``.
A first cell does not count. Printed is the processor time of training and distillation steps, of predictions,
of data (load and partition), of written files, and of the rest: messages, fusion, measurements and clients'
bookkeeping. Parts exclude each other: a prediction within a training counts as prediction.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from fedkd.benchmark import cells, schema, worker
from fedkd.clients.local import network_trainer
from fedkd.data import load
from fedkd.errors import UserError, told_in_one_line
from fedkd.storage import atomic, saved_arrays
from fedkd.tracking import recorder
from fedkd.training import evaluate, executor

STEPS, PREDICTIONS, DATA, FILES, REST = "steps", "predictions", "data", "files", "the rest"


class Clock:
    """Counts processor time for the innermost part that is under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts = [REST]
        self._since = time.process_time()

    def switch(self) -> None:
        """Count the time since the last switch for the present part."""
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def counted(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and counts its time for a part."""

        def done(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self._parts.append(part)
            try:
                return work(*args, **kwargs)
            finally:
                self.switch()
                self._parts.pop()

        return done

    def watch(self, part: str, holder: Any, *names: str) -> None:
        """Count these functions of a module or class, in every module that has imported them."""
        for name in names:
            plain = getattr(holder, name)
            counted = self.counted(part, plain)
            for module in [holder, *sys.modules.values()]:
                if getattr(module, "__dict__", {}).get(name) is plain:
                    setattr(module, name, counted)


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", nargs="?", default="scenarios/bench/every-strategy-alike.toml")
    parser.add_argument("--cells", type=int, default=33, help="the number of cells to run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the bench"
    )
    return parser.parse_args()


def main() -> None:
    """Run the cells, and print the table."""
    words = parse()
    every = cells.make_cells(schema.load_bench(words.bench, words.set))
    step = max(len(every) // max(words.cells, 1), 1)
    chosen = every[::step][: words.cells]
    clock = Clock()
    clock.watch(STEPS, executor.LoopExecutor, "run")
    clock.watch(PREDICTIONS, evaluate, "predict_in_batches")
    clock.watch(PREDICTIONS, network_trainer.NetworkTrainer, "logits_of")
    clock.watch(DATA, load, "load_data")
    clock.watch(FILES, atomic, "write_text_atomically", "write_bytes_atomically", "write_json_atomically")
    clock.watch(FILES, saved_arrays, "write_arrays", "write_bytes")
    clock.watch(FILES, recorder.Recorder, "flush")
    with tempfile.TemporaryDirectory() as place:
        for number, cell in enumerate([chosen[0], *chosen]):
            outcome = worker.run_cell(cell.scenario.model_dump_json(), f"{place}/{number}")
            if outcome.status != "done":
                raise UserError(f"{cell.label}: {outcome.status}, {outcome.error}")
            clock.switch()
            if number == 0:
                clock.seconds.clear()
    whole = sum(clock.seconds.values())
    print(f"| part of {len(chosen)} cells | s a cell | share (%) |\n| --- | --: | --: |")
    for part in (STEPS, PREDICTIONS, DATA, FILES, REST):
        print(
            f"| {part} | {clock.seconds[part] / len(chosen):.3f} | {100 * clock.seconds[part] / whole:.1f} |"
        )
    print(f"| all | {whole / len(chosen):.3f} | 100 |")


if __name__ == "__main__":
    with told_in_one_line():
        main()
