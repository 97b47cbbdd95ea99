"""Fusion strategies by name, with checked hyper-parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.fusion.auxiliary import AuxNetworks
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.strategy import MIXINS, FusionStrategy, overrides_hook
from fedkd.plugins import HyperParameter, Registry, build_part, hyperparameters_of, load_part

KEY = "fusion.strategy"

STRATEGIES = Registry(
    "fusion strategy",
    {
        "local": "fedkd.fusion.local:Local",
        "centralized": "fedkd.fusion.centralized:Centralized",
        "cfd": "fedkd.fusion.distillation.cfd:CFD",
        "comd": "fedkd.fusion.experimental.comd:CoMD",
        "comet": "fedkd.fusion.distillation.comet:Comet",
        "complementary": "fedkd.fusion.experimental.complementary:Complementary",
        "cronus": "fedkd.fusion.distillation.cronus:Cronus",
        "dlf": "fedkd.fusion.distillation.dlf:DLF",
        "dsfl": "fedkd.fusion.distillation.dsfl:DSFL",
        "experts": "fedkd.fusion.distillation.experts:Experts",
        "two_predictors": "fedkd.fusion.two_predictors:TwoPredictors",
        "fedmd": "fedkd.fusion.distillation.fedmd:FedMD",
        "knfu": "fedkd.fusion.distillation.knfu:KnFu",
        "chosen_beta": "fedkd.fusion.distillation.chosen_beta:ChosenBeta",
        "fedet": "fedkd.fusion.distillation.fedet:FedET",
        "fedhkd": "fedkd.fusion.prototypes.fedhkd:FedHKD",
        "fedhkt": "fedkd.fusion.distillation.fedhkt:FedHKT",
        "message": "fedkd.fusion.experimental.message:Message",
        "mhat": "fedkd.fusion.distillation.mhat:MHAT",
        "fedmask": "fedkd.fusion.streams.fedmask:FedMask",
        "feddf": "fedkd.fusion.weights.feddf:FedDF",
        "fedproto": "fedkd.fusion.prototypes.fedproto:FedProto",
        "fedgh": "fedkd.fusion.prototypes.fedgh:FedGH",
        "fedtgp": "fedkd.fusion.prototypes.fedtgp:FedTGP",
        "fd": "fedkd.fusion.prototypes.fd:FD",
        "panda": "fedkd.fusion.distillation.panda:Panda",
        "path": "fedkd.fusion.experimental.path:Path",
        "masters": "fedkd.fusion.experimental.masters:Masters",
        "kta": "fedkd.fusion.distillation.kta:KTA",
        "max_confidence": "fedkd.fusion.distillation.max_confidence:MaxConfidence",
        "selective_fd": "fedkd.fusion.distillation.selective_fd:SelectiveFD",
        "ktpfl": "fedkd.fusion.distillation.ktpfl:KTpFL",
        "scalearn": "fedkd.fusion.distillation.scalearn:ScaLearn",
        "scarlet": "fedkd.fusion.distillation.scarlet:Scarlet",
        "scaffold": "fedkd.fusion.weights.scaffold:Scaffold",
        "target": "fedkd.fusion.streams.target:Target",
        "fedweit": "fedkd.fusion.streams.fedweit:FedWeIT",
        "fedbuff": "fedkd.fusion.weights.fedbuff:FedBuff",
        "fedasync": "fedkd.fusion.weights.fedasync:FedAsync",
        "moon": "fedkd.fusion.weights.moon:Moon",
        "fedntd": "fedkd.fusion.weights.fedntd:FedNTD",
        "lg_fedavg": "fedkd.fusion.weights.partial_averaging:LGFedAvg",
        "fedper": "fedkd.fusion.weights.partial_averaging:FedPer",
        "ditto": "fedkd.fusion.two_models.ditto:Ditto",
        "apfl": "fedkd.fusion.two_models.apfl:APFL",
        "mst": "fedkd.fusion.distillation.mst:MST",
        "pfedme": "fedkd.fusion.two_models.pfedme:PFedMe",
        "fml": "fedkd.fusion.two_models.fml:FML",
        "fedkd_wu": "fedkd.fusion.two_models.mutual_svd:FedKD",
        "fedmrl": "fedkd.fusion.two_models.fedmrl:FedMRL",
        "fedgkt": "fedkd.fusion.two_models.fedgkt:FedGKT",
        "fedgen": "fedkd.fusion.prototypes.fedgen:FedGen",
        "fedrep": "fedkd.fusion.weights.partial_averaging:FedRep",
        "fedbabu": "fedkd.fusion.weights.partial_averaging:FedBABU",
        "fedala": "fedkd.fusion.weights.fedala:FedALA",
        "gossip": "fedkd.fusion.weights.gossip:Gossip",
        "fedit": "fedkd.fusion.weights.adapters:FedIT",
        "ffa_lora": "fedkd.fusion.weights.adapters:FFALoRA",
        "flexlora": "fedkd.fusion.weights.adapters:FlexLoRA",
        "flora": "fedkd.fusion.weights.adapters:FLoRA",
        "hetlora": "fedkd.fusion.weights.adapters:HetLoRA",
    },
    group="fedkd.strategies",
    aliases={
        "fedavg": "flwr:FedAvg",
        "fedavgm": "flwr:FedAvgM",
        "fedprox": "flwr:FedProx",
        "fedadam": "flwr:FedAdam",
        "fedyogi": "flwr:FedYogi",
        "fedadagrad": "flwr:FedAdagrad",
        "fedmedian": "flwr:FedMedian",
        "fedtrimmedavg": "flwr:FedTrimmedAvg",
        "krum": "flwr:Krum",
        "multikrum": "flwr:MultiKrum",
        "bulyan": "flwr:Bulyan",
        "qfedavg": "flwr:QFedAvg",
        "standalone": "local",
    },
    absent={
        "pooled": "its name is 'centralized' now",
        "dp": "its name is 'max_confidence' now; 'dp' stands for differential privacy elsewhere",
        "fedkd": "its name is 'fedkd_wu' now",
        "bandit": "it was removed: it lost accuracy on average in the benches",
        "bottleneck": "it was removed: it lost accuracy on average in the benches",
        "fedbn": "local BatchNorm statistics need a strategy of your own whose `exchanges` leaves them out",
        "fednova": "'fedavg' averages weights of clients that take unequal numbers of steps",
        "feddyn": "'fedprox' and 'scaffold' are its relatives here",
        "fedopt": "its server optimisers are 'fedadam', 'fedyogi', 'fedadagrad' and 'fedavgm'",
        "perfedavg": "'fedavg' with end_with = 'training' trains every client after the last average",
        "feddistill": "'fd' exchanges mean logits of each label, and 'fedmd' logits of transfer samples",
    },
)


GAUSSIAN_FORMS: Mapping[str, str] = {
    "fedmd": "fedkd.fusion.distillation.gaussian:GaussianMean",
    "knfu": "fedkd.fusion.distillation.gaussian:GaussianKnFu",
}
"""Classes of strategies for Gaussian predictions, in regression."""

RENAMED: Mapping[str, str] = {
    old: f"its name is `{new}` now"
    for old, new in {
        "prologue": "prepare",
        "auxiliaries": "aux_networks",
        "answerer": "eval_model",
        "answerers": "eval_models",
        "answers_with": "answering_model",
        "asked": "evaluated_networks",
        "choices": "client_metrics",
        "server_work": "server_cost",
        "teaches_locally": "capabilities.uses_local_loss",
        "needs_label_counts": "capabilities.label_counts",
        "waits": "capabilities.requires_sync",
        "fuses": "capabilities.averages",
        "sends_otherwise_later": "capabilities.upload_changes",
        "asks_anew": "capabilities.requests_vary",
    }.items()
}
"""Attributes and hooks of strategies that were renamed in version 0.3."""


def make_strategy(
    name: str, hyperparameters: Mapping[str, Any], search: Sequence[str | Path] = ()
) -> FusionStrategy:
    """Build a strategy, built-in or ``"pkg.mod:Class"``, from the ``[fusion]`` table of a scenario.

    Raises:
        UserError: Unknown strategy, unusable class, unknown key or value out of range.
    """
    made = build_part(load_strategy_class(name, search), name, hyperparameters, key=KEY)
    _refuse(name, made)
    return made


def load_strategy_class(
    name: str, search: Sequence[str | Path] = (), *, gaussian: bool = False
) -> type[FusionStrategy]:
    """Return the class called `name`; its form for Gaussian predictions, if there is one and it is wanted.

    Raises:
        UserError: It is not a dataclass derived from `FusionStrategy` with its methods.
    """
    found = GAUSSIAN_FORMS.get(name, name) if gaussian else name
    cls = load_part(STRATEGIES, FusionStrategy, found, search, key=KEY)  # type: ignore[type-abstract]
    _refuse(name, cls)
    return cls


def _refuse(name: str, strategy: FusionStrategy | type[FusionStrategy]) -> None:
    problem = _problem(strategy)
    if problem:
        raise UserError(f"'{name}' {problem}", key=KEY)


def _problem(strategy: FusionStrategy | type[FusionStrategy]) -> str | None:
    """Return a defect that would otherwise appear in the middle of a run, if any.

    Capabilities that depend on hyper-parameters are checked once these are known.
    """
    cls = strategy if isinstance(strategy, type) else type(strategy)
    can, own = strategy.capabilities, getattr(cls, "__dataclass_fields__", {})
    for name in (*(field.name for field in fields(Capabilities)), *RENAMED):
        if hasattr(cls, name) and name not in own:
            return f"has `{name}` of its own; {RENAMED.get(name, 'it is a field of its `capabilities`')}"
    for mixin in MIXINS:
        for name in vars(mixin):
            if not name.startswith("_") and hasattr(cls, name) and not issubclass(cls, mixin):
                return f"has `{name}`, a hook of `{mixin.__name__}`, which must be one of its bases"
    if not isinstance(can, Capabilities):
        return None
    gradients = "gradients" in can.needs
    distils = can.sends != "nothing" and not can.uses_local_loss and not overrides_hook(cls, "apply")
    if distils and not overrides_hook(cls, "loss"):
        return "does not define `loss`, which its clients minimise in distillation"
    if can.infers_from_guidance and not overrides_hook(cls, "infer"):
        return "answers evaluations from guidance, but does not define `infer`"
    if overrides_hook(cls, "predictor") and not gradients:
        return 'has a network that answers evaluations, so it `needs` clients of "gradients"'
    several = issubclass(cls, AuxNetworks) and cls.eval_models
    if several and (not overrides_hook(cls, "eval_model") or not gradients):
        return 'has several models measured, so it defines `eval_model` and `needs` clients of "gradients"'
    if can.trials and not gradients:
        return 'lets clients try guidance, so it `needs` clients of "gradients"'
    if overrides_hook(cls, "aux_networks") and (not gradients or can.pools or can.brings_model):
        return (
            'lets clients train auxiliary networks, so each keeps its own model, and it `needs` "gradients"'
        )
    if can.pools and can.sends != "nothing":
        return "pools all clients' samples, so it must send nothing"
    stacked = [kind for kind in can.kinds.values() if kind.is_stacked]
    if len(set(stacked)) < len(stacked):
        return "declares two arrays of one kind in `kinds`, but a stacked kind takes one"
    return None


def strategy_source(strategy: type[FusionStrategy]) -> str:
    """Return a strategy's paper and its departure from it; empty for fedkd's own."""
    return "; ".join(text for text in (strategy.paper, strategy.source_note) if text)


def strategy_hyperparameters(
    strategy: str | type[FusionStrategy], search: Sequence[str | Path] = ()
) -> list[HyperParameter]:
    """Return a strategy's hyper-parameters in the order of declaration."""
    return hyperparameters_of(
        load_strategy_class(strategy, search) if isinstance(strategy, str) else strategy
    )
