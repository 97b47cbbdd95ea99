"""Error messages about keys, including those of other tools and earlier releases."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedkd.errors import UserError, did_you_mean, refuse_if
from fedkd.plugins import explain_error
from fedkd.scenario.schema import Scenario

_NAMES: Mapping[str, str] = {
    "it is now fusion.ce_weight": "privateweight",
    "it is now fusion.kd_weight": "rehearse",
    "it is now fusion.kd_weight_decay": "rehearsedecay",
    "it is now fusion.logit_adjustment": "ownprior",
    "it is now fusion.knowledge_cache": "bank",
    "it is now fusion.backward_transfer": "backward",
    "it is now tasks.pace, with tasks.pace_range for the rounds of a task": "clock",
    "it is now training.vmap_size": "together",
    "it is now end_with = 'fusion' or 'training'": "finish",
    "use clients_per_round, the number of clients sampled for training each round": (
        "participation participationrate participationfraction clientfraction clientsampling "
        "samplefraction fractionfit fractiontrain joinratio"
    ),
    "use evaluate_clients, the number of evaluated clients": "fractionevaluate",
    "use data.clients, the number of clients": "numclients nclients",
    "use rounds": "numrounds communicationrounds globalrounds globalepochs",
    "local training is counted in epochs; use training.local_epochs": "localsteps epochs localep",
    "use training.local_epochs": "localepochs",
    "use training.lr": "learningrate locallr",
    "use training.batch_size": "batchsize localbatchsize",
    "use training.schedule": "lrscheduler scheduler",
    "use training.early_stopping.patience": "patience",
    "for FedProx use fusion.proximal_mu, with fusion.strategy = 'fedprox'": "mu proximalmu prox",
    "for clients use faults.dropout, for networks args = { dropout = 0.2 } of [[clients]]": (
        "dropout dropoutrate"
    ),
    "use [[clients]] with model = 'cnn', and args for its arguments": "model models architecture backbone",
    "use data.partition, such as { scheme = 'dirichlet', alpha = 0.5 }": "noniid",
    "use data.partition.alpha": "dirichletalpha",
    "use data.transfer": "publicdata proxydata",
    "use faults.poisoned, the share of poisoned clients, and faults.poison": "byzantine",
    "use faults.poison, with faults.poisoned for the share of poisoned clients": "attack",
    "use fusion.filters, or a robust strategy such as 'cronus' or 'flwr:Krum'": "defence",
    "use fusion.strategy": "aggregation aggregator",
    "use engine.gpus_per_actor": "gpus numgpus",
    "use engine.actors": "workers numworkers",
    "for smaller uploads use fusion.upload_dtype or fusion.upload_top, or 'cfd' or 'fedkd_wu'": (
        "compression quantization"
    ),
    "fedkd has no adapters; a plug-in model may have them: model = 'pkg.mod:factory'": "lora peft",
    "fedkd has no secure aggregation; see the page Privacy of the docs": "secureaggregation",
    "fedkd does not encrypt uploads; deployed nodes use TLS": "encryption",
    "fedkd has no differential privacy; see the page Privacy of the docs": (
        "privacy differentialprivacy noisemultiplier dp"
    ),
    "fedkd has no augmentation; a plug-in data set may return augmented samples": "augmentation",
    "fedkd has no warm-up of learning rates; see training.schedule": "warmup warmuprounds",
}
ASKED: Mapping[str, str] = {name: sentence for sentence, names in _NAMES.items() for name in names.split()}
"""Advice in errors, by the key's name in lower case without underscores."""
_RENAMED_METRICS = {"accuracy_trained": "accuracy_before_fusion", "bank_bytes": "knowledge_cache_bytes"}


def scenario_error(error: ValidationError, *, file: str | None = None) -> UserError:
    """Return the first error in one line, with the number of others."""
    problems = error.errors(include_url=False)
    # A misspelt key keeps its default, which may cause follow-up errors: report it first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    kind, location, known = first["type"], first["loc"], known_keys(first["loc"][:-1])
    if kind == "extra_forbidden":
        message = unknown_key_message(str(location[-1]), known)
    elif kind == "string_pattern_mismatch" and location == ("name",):
        allowed = "letters, digits, '.', '_' and '-', starting with a letter or digit"
        message = f"must be {allowed}, got {first['input']!r}"
    else:
        message = explain_error(first, known)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return UserError(message + more, key=dotted_key(location), file=file)


def unknown_key_message(name: str, known: Iterable[str], of: str = "") -> str:
    """Return the message about an unknown key; `of` is e.g. ``" for strategy 'knfu'"``."""
    told = asked_for(name)
    if told is None and (elsewhere := _places().get(name)):
        told = f"did you mean {' or '.join(elsewhere[:MOST_PLACES])}?"
    return f"unknown key{of}; {told or did_you_mean(name, known)}"


MOST_PLACES = 3  # tables that an error names for a key


@cache
def _places() -> Mapping[str, list[str]]:
    """Return every key of a scenario by its last name, dotted."""
    found: dict[str, list[str]] = {}

    def walk(model: type[BaseModel], path: tuple[str, ...]) -> None:
        for name, field in model.model_fields.items():
            found.setdefault(name, []).append(".".join((*path, name)))
            section = section_class(field.annotation)
            if section is not None and get_origin(field.annotation) is not list and name != "tracking":
                walk(section, (*path, name))

    walk(Scenario, ())
    return found


def known_keys(location: Iterable[Any]) -> Collection[str]:
    """Return the keys allowed in the table at `location`, e.g. ``("data", "partition")``."""
    model: type[BaseModel] | None = Scenario
    for part in location:
        if isinstance(part, int):  # an entry of a list has the model of the list's annotation
            continue
        field = model.model_fields.get(part) if model else None
        model = section_class(field.annotation) if field else None
    return model.model_fields.keys() if model else ()


def dotted_key(location: Iterable[Any]) -> str:
    """Return a location as ``--set`` spells it, quoted like TOML."""
    return ".".join(
        text if re.fullmatch(r"[A-Za-z0-9_-]+", text := str(part)) else json.dumps(text, ensure_ascii=False)
        for part in location
    )


def section_class(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside ``Section``, ``Section | None`` or ``list[Section]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_class(part))), None)


def asked_for(name: str) -> str | None:
    """Return the advice about a key of another tool or release, if any."""
    return ASKED.get(name.casefold().replace("_", "").replace("-", ""))


def check_metric_name(name: str, key: str) -> None:
    """Raise a `UserError` for a metric's name from an earlier release."""
    for old, new in _RENAMED_METRICS.items():
        refuse_if(old in name, f"'{name}' is now '{name.replace(old, new)}'", key)
