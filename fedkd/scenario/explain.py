"""Error messages about keys, also of other tools and earlier releases."""

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
    "its name is fusion.ce_weight now": "privateweight",
    "its name is fusion.kd_weight now": "rehearse",
    "its name is fusion.kd_weight_decay now": "rehearsedecay",
    "its name is fusion.logit_adjustment now": "ownprior",
    "its name is fusion.knowledge_cache now": "bank",
    "its name is fusion.backward_transfer now": "backward",
    "its name is tasks.pace now; the rounds that a task takes are tasks.pace_range": "clock",
    "its name is training.vmap_size now": "together",
    "it is end_with = 'fusion' or 'training' now": "finish",
    "it is clients_per_round, the number of clients sampled for training each round": (
        "participation participationrate participationfraction clientfraction clientsampling "
        "samplefraction fractionfit fractiontrain joinratio"
    ),
    "it is evaluate_clients, the number of clients that are evaluated": "fractionevaluate",
    "it is data.clients, the number of clients": "numclients nclients",
    "it is rounds": "numrounds communicationrounds globalrounds globalepochs",
    "local training is counted in epochs: it is training.local_epochs": "localsteps epochs localep",
    "it is training.local_epochs": "localepochs",
    "it is training.lr": "learningrate locallr",
    "it is training.batch_size": "batchsize localbatchsize",
    "it is training.schedule": "lrscheduler scheduler",
    "it is training.early_stopping.patience": "patience",
    "μ of FedProx is fusion.proximal_mu, with fusion.strategy = 'fedprox'": "mu proximalmu prox",
    "clients that drop out are faults.dropout; of a network it is args = { dropout = 0.2 } of [[clients]]": (
        "dropout dropoutrate"
    ),
    "models stand in [[clients]]: model = 'cnn', and args for its arguments": (
        "model models architecture backbone"
    ),
    "samples are partitioned by data.partition, such as { scheme = 'dirichlet', alpha = 0.5 }": "noniid",
    "it is data.partition.alpha": "dirichletalpha",
    "the samples that everybody holds are data.transfer": "publicdata proxydata",
    "it is faults.poisoned, the share of poisoned clients, and faults.poison": "byzantine",
    "it is faults.poison, with faults.poisoned for the share of poisoned clients": "attack",
    "poisoned uploads are met by fusion.filters, or by a strategy such as 'cronus', 'flwr:Krum'": "defence",
    "it is fusion.strategy": "aggregation aggregator",
    "it is engine.gpus_per_actor": "gpus numgpus",
    "it is engine.actors": "workers numworkers",
    "fusion.upload_dtype and fusion.upload_top make uploads smaller, and so do 'cfd' and 'fedkd_wu'": (
        "compression quantization"
    ),
    "there are no adapters here; a model of your own may have some: model = 'pkg.mod:factory'": "lora peft",
    "there is no secure aggregation here; the docs say what a server sees (Privacy)": "secureaggregation",
    "there is no encryption of uploads here; nodes of a deployment speak by TLS": "encryption",
    "there is no differential privacy here; what leaves a client is on the page Privacy of the docs": (
        "privacy differentialprivacy noisemultiplier dp"
    ),
    "there is no augmentation here; a data set of your own may bring augmented samples": "augmentation",
    "there is no warm-up of learning rates here; training.schedule has what there is": "warmup warmuprounds",
}
ASKED: Mapping[str, str] = {name: sentence for sentence, names in _NAMES.items() for name in names.split()}
"""Endings of errors, by the key's name without case and underscores."""
_RENAMED_METRICS = {"accuracy_trained": "accuracy_before_fusion", "bank_bytes": "knowledge_cache_bytes"}


def scenario_error(error: ValidationError, *, file: str | None = None) -> UserError:
    """Return the first problem in one line, with the number of others."""
    problems = error.errors(include_url=False)
    # A misspelt key keeps its default, which may cause follow-up errors: it goes first.
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
    """Return the message about an unknown key, `of` e.g. ``" for strategy 'knfu'"``."""
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
    """Return the sentence about a key of another tool, if any."""
    return ASKED.get(name.casefold().replace("_", "").replace("-", ""))


def check_metric_name(name: str, key: str) -> None:
    """Refuse a metric's name from an earlier release."""
    for old, new in _RENAMED_METRICS.items():
        refuse_if(old in name, f"the name of '{name}' is '{name.replace(old, new)}' now", key)
