"""All pages that are made of the code, by where they lie in the documentation."""

from __future__ import annotations

from collections.abc import Callable

from reference.combinations import combinations_page
from reference.commands import commands_page
from reference.keys import bench_page, scenario_page
from reference.parts import datasets_page, learners_page, models_page, partitions_page, strategies_page
from reference.uploads import uploads_page

PAGES: dict[str, Callable[[], str]] = {
    "reference/scenario.md": scenario_page,
    "reference/bench.md": bench_page,
    "reference/strategies.md": strategies_page,
    "reference/learners.md": learners_page,
    "reference/models.md": models_page,
    "reference/datasets.md": datasets_page,
    "reference/partitions.md": partitions_page,
    "reference/uploads.md": uploads_page,
    "reference/combinations.md": combinations_page,
    "reference/commands.md": commands_page,
}
