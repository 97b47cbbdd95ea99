"""``fedkd check`` tries a round of a plug-in strategy."""

from __future__ import annotations

import pytest
import tomli_w

from fedkd.cli.main import main

PLUGINS = '''
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from fedkd.fusion.strategy import FusionStrategy, Guidance
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.math.probabilities import softmax
from fedkd.training.losses import kd_kl


@dataclass(frozen=True)
class Mean(FusionStrategy):
    name: ClassVar[str] = "mine"

    def fuse(self, knowledge, memory):
        return Guidance(targets=softmax(knowledge.logits, 1.0).mean(axis=0))

    def loss(self, student_logits, targets):
        return kd_kl(student_logits, targets, 1.0)


@dataclass(frozen=True)
class Trained(Mean):
    """Trains a model on the server, and fails where asked to."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs={"server"})
    fails: bool = False

    def fuse(self, knowledge, memory):
        server = knowledge.server
        of = server.architecture("mlp", {"hidden": [8]})
        targets = super().fuse(knowledge, memory).targets
        weights = server.train(
            of, server.initial_weights(of), (targets,), self.loss, epochs=10**6, batch_size=20, lr=0.1
        )
        if self.fails:
            raise KeyError("student")
        return Guidance(targets=softmax(server.logits(of, weights), 1.0))


@dataclass(frozen=True)
class Logits(Mean):
    """Its targets are mean logits, which its loss takes for probabilities."""

    def fuse(self, knowledge, memory):
        return Guidance(targets=knowledge.logits.mean(axis=0))


@dataclass(frozen=True)
class Squares(Logits):
    def loss(self, student_logits, targets):
        return torch.nn.functional.mse_loss(student_logits, targets)


@dataclass(frozen=True)
class Softened(Logits):
    def loss(self, student_logits, targets):
        return kd_kl(student_logits, targets.softmax(dim=1), 1.0)


@dataclass(frozen=True)
class Counting(Mean):
    """Counts its rounds in the class."""

    rounds: ClassVar[list] = []

    def fuse(self, knowledge, memory):
        self.rounds.append(knowledge.round)
        return super().fuse(knowledge, memory)


STATE = {}


@dataclass(frozen=True)
class Blending(Mean):
    """Blends with its last targets, kept in the module."""

    def fuse(self, knowledge, memory):
        targets = super().fuse(knowledge, memory).targets
        STATE["last"] = 0.5 * (targets + STATE.get("last", np.float32(0.1)))
        return Guidance(targets=STATE["last"].astype(np.float32))
'''


@pytest.fixture
def check(digits_scenario, tmp_path, capsys):
    """Return a function from the tables of a strategy to the status of ``fedkd check`` and its error."""
    (tmp_path / "contract_plugins.py").write_text(PLUGINS)
    path = tmp_path / "scenario.toml"

    def checked(name: str, **hyperparameters) -> tuple[int, str]:
        fusion = {"strategy": f"contract_plugins:{name}", **hyperparameters}
        path.write_text(tomli_w.dumps(digits_scenario | {"fusion": fusion}))
        status = main(["check", str(path)])
        return status, capsys.readouterr().err

    return checked


@pytest.mark.parametrize("name", ["Mean", "Trained", "Squares", "Softened"])
def test_a_correct_strategy_is_accepted(name, check):
    assert check(name) == (0, "")


@pytest.mark.parametrize(
    ("name", "hyperparameters", "told"),
    [
        ("Trained", {"fails": True}, "raised KeyError: 'student' in a trial round"),
        ("Logits", {}, "targets of 'mine' must be probabilities, as its `loss` compares them with a softmax"),
        ("Counting", {}, "'mine' must not change 'Counting.rounds' in a round"),
        (
            "Blending",
            {},
            "'mine' must return the same guidance for the same knowledge, but a second `fuse` returned other"
            " targets",
        ),
    ],
)
def test_a_broken_contract_gives_one_line_and_status_2(name, hyperparameters, told, check):
    status, error = check(name, **hyperparameters)
    assert status == 2 and error.count("\n") == 1 and "fusion.strategy: " in error and told in error
