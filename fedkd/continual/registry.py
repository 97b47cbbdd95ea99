"""Learners by name, and their hyper-parameters checked in the scenario's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.hyperparameters import HyperParameter, build_part, hyperparameters_of, load_part
from fedkd.plugins import Registry

if TYPE_CHECKING:
    from fedkd.continual.learner import Learner

KEY = "continual.learner"

LEARNERS = Registry(
    "learner",
    {
        "naive": "fedkd.continual.naive:Naive",
        "joint": "fedkd.continual.joint:Joint",
        "single": "fedkd.continual.single:Single",
        "cumulative": "fedkd.continual.cumulative:Cumulative",
        "er": "fedkd.continual.er:ExperienceReplay",
        "agem": "fedkd.continual.agem:AGem",
        "der": "fedkd.continual.der:DER",
        "der++": "fedkd.continual.derpp:DERpp",
        "gdumb": "fedkd.continual.gdumb:GDumb",
        "icarl": "fedkd.continual.icarl:ICaRL",
        "packnet": "fedkd.continual.packnet:PackNet",
        "hat": "fedkd.continual.hat:HAT",
        "ewc": "fedkd.continual.ewc:EWC",
        "online_ewc": "fedkd.continual.online_ewc:OnlineEWC",
        "si": "fedkd.continual.si:SI",
        "mas": "fedkd.continual.mas:MAS",
        "lwf": "fedkd.continual.lwf:LwF",
        "gpm": "fedkd.continual.gpm:GPM",
        "trgp": "fedkd.continual.trgp:TRGP",
        "cuber": "fedkd.continual.cuber:CUBER",
        "supsup": "fedkd.continual.supsup:SupSup",
        "ssnet": "fedkd.continual.ssnet:SSNeT",
        "exssnet": "fedkd.continual.exssnet:ExSSNeT",
        "fedweit": "fedkd.continual.fedweit:FedWeIT",
    },
    group="fedkd.learners",
    aliases={
        "finetune": "naive",
        "finetuning": "naive",
        "sequential": "naive",
        "multitask": "joint",
        "experience_replay": "er",
        "derpp": "der++",
        "a_gem": "agem",
        "synaptic_intelligence": "si",
        "learning_without_forgetting": "lwf",
        "elastic_weight_consolidation": "ewc",
    },
)


def make_learner(name: str, hyperparameters: Mapping[str, Any], search: Sequence[str | Path] = ()) -> Learner:
    """Build a learner from the ``[continual]`` table of a scenario.

    Args:
        name: A built-in name, or ``"pkg.mod:Class"``.
        hyperparameters: The learner's own keys; those left out take their defaults.
        search: Folders whose Python files may be named.

    Raises:
        UserError: No such learner, a class that is not one, an unknown key or a value out of range.
    """
    return build_part(load_learner_class(name, search), name, hyperparameters, key=KEY)


def load_learner_class(name: str, search: Sequence[str | Path] = ()) -> type[Learner]:
    """Return the class called `name`, once it is sure to be a usable learner.

    Raises:
        UserError: It does not exist, or is not a dataclass derived from `Learner`.
    """
    from fedkd.continual.learner import Learner

    return load_part(LEARNERS, Learner, name, search, key=KEY)


def learner_hyperparameters(
    learner: str | type[Learner], search: Sequence[str | Path] = ()
) -> list[HyperParameter]:
    """Return a learner's hyper-parameters in the order in which it declares them."""
    return hyperparameters_of(load_learner_class(learner, search) if isinstance(learner, str) else learner)
