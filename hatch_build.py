"""Puts the scenarios and benches into the wheel, where `fedkd.scenario.shipped_files` finds them by name."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShipScenarios(BuildHookInterface):
    """Takes ``scenarios/`` along as ``fedkd/shipped/``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to a wheel, but not to an editable one: copies would stand beside what is edited."""
        if version != "editable":
            build_data["force_include"]["scenarios"] = "fedkd/shipped"
