"""What is drawn depends on the seed, the batch and the trials before it, and on nothing else."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fedkd.errors import UserError
from fedkd.tuning.runner import plan_tune
from fedkd.tuning.sampling import draw
from fedkd.tuning.schema import TuneFile
from fedkd.tuning.space import dimensions
from fedkd.tuning.trials import Trial

pytest.importorskip("optuna")

SPACE = dimensions(
    {
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "epochs": {"low": 1, "high": 9, "step": 2},
        "fusion!": [{"strategy": "fedmd"}, {"strategy": "knfu", "beta": 2.0}],
    }
)


def drawn(number=4, known=(), batch=0, seed=1, sampler="tpe", startup=4):
    spec = TuneFile(sampler=sampler, startup=startup)
    return draw(SimpleNamespace(space=SPACE, spec=spec, seeds=[seed]), known, number, batch)


def told(values, value, status="done"):
    return Trial(0, values, status, value, 1, {} if value is None else {1: value})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_values_lie_within_bounds_and_repeat(sampler):
    first = drawn(6, sampler=sampler)
    assert first == drawn(6, sampler=sampler) != drawn(6, sampler=sampler, seed=2)
    assert first != drawn(6, sampler=sampler, batch=1)
    for values in first:
        assert 1e-4 <= values["lr"] <= 0.1 and values["lr"] == float(f"{values['lr']:.4g}")
        assert values["epochs"] in (1, 3, 5, 7, 9) and isinstance(values["epochs"], int)
        assert values["fusion!"] in SPACE[2].choices


def test_fewer_trials_equal_the_first_of_more():
    known = [told(values, number / 9) for number, values in enumerate(drawn(4))]
    assert drawn(2, known, batch=1) == drawn(5, known, batch=1)[:2]


def test_the_sampler_learns_from_finished_trials():
    """Where few epochs are good and many diverge, it comes to draw few."""
    known: list[Trial] = []
    for batch in range(8):
        for values in drawn(4, known, batch=batch):
            bad = values["epochs"] > 5
            known.append(told(values, None if bad else 1 / values["epochs"], "diverged" if bad else "done"))
    late = [trial.values["epochs"] for trial in known[16:]]
    assert sum(epochs <= 3 for epochs in late) > len(late) / 2


def test_a_missing_optuna_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"^fedkd tune needs optuna; .*: pip install '\.\[tune\]'"):
        plan_tune("tune.toml")
