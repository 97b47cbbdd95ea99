"""The base of a strategy: few names to know, each with an example, and old names are refused."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import fedkd.fusion as door
from fedkd.errors import UserError
from fedkd.fusion import AuxNetworks, Capabilities, FusionStrategy, Guidance, LocalObjective, ServerCost
from fedkd.fusion.auxiliary import aux_networks_of
from fedkd.fusion.local import Local
from fedkd.fusion.local_objective import objective_of, trained_epochs
from fedkd.fusion.registry import STRATEGIES, load_strategy_class
from fedkd.fusion.strategy import distils_targets, overrides_hook, replaces_predictor

HOOKS = ("prepare", "request", "upload", "fuse", "apply", "loss", "end_task")


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_a_strategy_has_at_most_25_public_names() -> None:
    assert len(public(FusionStrategy)) <= 25
    assert set(HOOKS) <= public(FusionStrategy)
    assert len(inspect.getsource(FusionStrategy).splitlines()) < 200


def test_each_hook_has_an_example_in_its_docstring() -> None:
    for hook in HOOKS:
        assert "``" in (getattr(FusionStrategy, hook).__doc__ or ""), hook


def test_mixins_and_base_share_no_name() -> None:
    bases = (FusionStrategy, LocalObjective, AuxNetworks, ServerCost)
    names = [name for base in bases for name in public(base)]
    assert len(names) == len(set(names))


def test_hooks_of_unused_mixins_change_nothing() -> None:
    strategy = Local()
    assert objective_of(strategy).local_loss({}) is None and trained_epochs(strategy, 3) == 3
    assert aux_networks_of(strategy).aux_networks() == {} and not replaces_predictor(strategy)
    assert (
        not distils_targets(strategy)
        and overrides_hook(strategy, "fuse")
        and not overrides_hook(strategy, "loss")
    )


def test_the_public_module_exports_its_listed_names() -> None:
    assert all(getattr(door, name) is not None for name in door.__all__)
    with pytest.raises(AttributeError, match="Nothing"):
        door.Nothing  # noqa: B018


@dataclass(frozen=True)
class Plain(FusionStrategy):
    """Says nothing."""

    name: ClassVar[str] = "plain"

    def fuse(self, knowledge, memory):
        return Guidance(targets=np.zeros((1, 2), np.float32))

    def loss(self, student_logits, targets):
        return student_logits.sum()


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("guides", "field of its `capabilities`"),
        ("prologue", "its name is `prepare` now"),
        ("waits", "its name is `capabilities.requires_sync` now"),
        ("local_step", "hook of `LocalObjective`, which must be one of its bases"),
        ("predictor", "hook of `AuxNetworks`, which must be one of its bases"),
        ("server_cost", "hook of `ServerCost`, which must be one of its bases"),
    ],
)
def test_a_name_in_the_wrong_place_is_refused(attribute: str, told: str, monkeypatch) -> None:
    cls = dataclass(frozen=True)(type("Other", (Plain,), {attribute: None}))
    monkeypatch.setattr(STRATEGIES, "load", lambda name, search=(): cls)
    with pytest.raises(UserError, match=told):
        load_strategy_class("elsewhere")


def test_capabilities_state_audience_and_stream_fusion() -> None:
    assert Capabilities().audience == "" and Capabilities(guides="nobody").audience == "nobody"
    assert Capabilities(guides="each", reach="some").audience == "some"
    assert Capabilities().fuses_by_task and not Capabilities(needs={"weights"}).fuses_by_task
