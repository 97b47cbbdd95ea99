"""Keys of other tools and of earlier releases, and their names here; one sentence for each."""

from collections.abc import Mapping

from fedkd.errors import UserError

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
"""Name of a key without case and underscores, to the end of an error."""


def asked_for(name: str) -> str | None:
    """Return the sentence for a key of another tool; None: there is none."""
    return ASKED.get(name.casefold().replace("_", "").replace("-", ""))


_RENAMED_METRICS = {"accuracy_trained": "accuracy_before_fusion", "bank_bytes": "knowledge_cache_bytes"}


def check_metric_name(name: str, key: str) -> None:
    """Refuse the name that a metric had in an earlier release."""
    for old, new in _RENAMED_METRICS.items():
        if old in name:
            raise UserError(f"the name of '{name}' is '{name.replace(old, new)}' now", key=key)
