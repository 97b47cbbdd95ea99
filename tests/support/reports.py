"""Runs and benches without the parts of a report, for tests of something else.

A page takes two megabytes, and the figures of a stream take longer than a small run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def unpaged() -> Iterator[None]:
    """End runs and benches without `report.html`."""
    with pytest.MonkeyPatch.context() as patch:
        # A door caches what it has imported: it is set first, so that it does not keep the file's stand-in.
        for place in ("fedkd.report", "fedkd.report.page.write"):
            patch.setattr(f"{place}.write_final_report", lambda folder, tell: None)
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """End runs without the figures of their stream, schedule and graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.report.continual.draw_accuracy_matrix", lambda *arguments: None)
        patch.setattr("fedkd.report.schedule.draw_schedule_figure", lambda *arguments: None)
        patch.setattr("fedkd.report.topology.draw_graph_figure", lambda *arguments: None)
        yield


@contextmanager
def unrendered() -> Iterator[None]:
    """Lay figures out and leave their files empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *arguments, **options: None)
        yield
