"""Learners by name, with checked hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import UserError
from fedkd.plugins import HyperParameter, Registry, build_part, hyperparameters_of, load_part

if TYPE_CHECKING:
    from fedkd.continual.learner import Learner

KEY = "continual.learner"
_TRAITS = (
    *("isolates", "scales_own_subspaces", "begins_anew", "trains_masked_weights", "task_statistics"),
    *("needs_boundaries", "withholds_masks"),
)
RENAMED_HOOKS: Mapping[str, str] = {
    **{trait: f"`{trait}` of `traits`" for trait in _TRAITS},
    "filter": "`project`",
    "confine": "`project_update`",
    "answers": "`predict`",
    "training_tasks": "`batch`",
    "rehearsed": "`batch`",
    "criterion": "`loss` of the mixin `OwnLoss`",
    "effective": "`task_parameters` of the mixin `TaskParameters`",
    "outputs": "`predict_without_task` of the mixin `TaskInference`",
    "outputs_and_tasks": "`predict_without_task` of the mixin `TaskInference`",
    "superfluous": "`extra_outputs` of the mixin `TaskInference`",
    "tell": "`export_state` of the mixin `StateExchange`",
    "hear": "`import_state` of the mixin `StateExchange`",
    "remembers_only": "`replays_only` of `traits`",
    "confines": "`projects_updates` of `traits`",
    "keeps_closed": "`closed` of `traits`",
    "follows_path": "the mixin `StepObserver`",
    "steps_only_read": "`recordable`",
    "end_steps": "`end` of a `StepForm`",
}
"""Hooks of earlier releases and their successors."""
MOVED_HOOKS: Mapping[str, str] = {
    **dict.fromkeys(("phase_of", "begin_phase", "optimizer"), "Phases"),
    **dict.fromkeys(("draw", "prepare_steps"), "FastSteps"),
    "after_step": "StepObserver",
    "reopen": "Reopenable",
}
"""Hooks that the base class had in earlier releases, and their mixins."""

LEARNERS = Registry(
    "learner",
    {
        "naive": "fedkd.continual.baselines.baselines:Naive",
        "joint": "fedkd.continual.baselines.baselines:Joint",
        "single": "fedkd.continual.baselines.baselines:Single",
        "cumulative": "fedkd.continual.baselines.baselines:Cumulative",
        "er": "fedkd.continual.replay.er:ExperienceReplay",
        "agem": "fedkd.continual.replay.agem:AGem",
        "der": "fedkd.continual.replay.der:DER",
        "der++": "fedkd.continual.replay.der:DERpp",
        "gdumb": "fedkd.continual.replay.gdumb:GDumb",
        "icarl": "fedkd.continual.replay.icarl:ICaRL",
        "packnet": "fedkd.continual.masks.packnet:PackNet",
        "hat": "fedkd.continual.masks.hat:HAT",
        "ewc": "fedkd.continual.regularisation.ewc:EWC",
        "online_ewc": "fedkd.continual.regularisation.ewc:OnlineEWC",
        "si": "fedkd.continual.regularisation.si:SI",
        "mas": "fedkd.continual.regularisation.mas:MAS",
        "lwf": "fedkd.continual.regularisation.lwf:LwF",
        "gpm": "fedkd.continual.subspace.gpm:GPM",
        "trgp": "fedkd.continual.subspace.trgp:TRGP",
        "cuber": "fedkd.continual.subspace.cuber:CUBER",
        "supsup": "fedkd.continual.masks.supsup:SupSup",
        "ssnet": "fedkd.continual.masks.ssnet:SSNeT",
        "exssnet": "fedkd.continual.masks.ssnet:ExSSNeT",
        "fedweit": "fedkd.continual.adapters.fedweit:FedWeIT",
        "policy": "fedkd.continual.consolidation.policy:Policy",
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

    The name is built-in, or ``"pkg.mod:Class"``. Modules may also be Python files in the folders `search`.

    Raises:
        UserError: No such learner, a class that is not one, an unknown key or a value out of range.
    """
    return build_part(load_learner_class(name, search), name, hyperparameters, key=KEY)


def load_learner_class(name: str, search: Sequence[str | Path] = ()) -> type[Learner]:
    """Return the class called `name`; `UserError`: it is missing, or no dataclass derived from `Learner`."""
    from fedkd.continual.learner import Learner

    cls = load_part(LEARNERS, Learner, name, search, key=KEY)
    mixins = {base.__name__ for base in cls.__mro__}
    for base in cls.__mro__:
        for hook in vars(base):
            successor = RENAMED_HOOKS.get(hook)
            if hook in MOVED_HOOKS and MOVED_HOOKS[hook] not in mixins:
                successor = f"a hook of the mixin `{MOVED_HOOKS[hook]}`"
            if successor is not None:
                raise UserError(f"'{name}' defines `{hook}`, which is now {successor}", key=KEY)
    return cls


def learner_hyperparameters(
    learner: str | type[Learner], search: Sequence[str | Path] = ()
) -> list[HyperParameter]:
    """Return a learner's hyper-parameters in the order of declaration."""
    return hyperparameters_of(load_learner_class(learner, search) if isinstance(learner, str) else learner)
