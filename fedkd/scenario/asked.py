"""What people ask for that is called otherwise here, or is not there: a sentence for each."""

from __future__ import annotations

from collections.abc import Mapping

_SAMPLED = "it is clients_per_round, the number of clients sampled for training each round"
_CLIENTS = "it is data.clients, the number of clients"
_EPOCHS = "local training is counted in epochs: it is training.local_epochs"
_PROXIMAL = "μ of FedProx is fusion.proximal_mu, with fusion.strategy = 'fedprox'"
_DROPOUT = (
    "clients that drop out are faults.dropout; of a network it is args = { dropout = 0.2 } of [[clients]]"
)
_PRIVACY = "there is no differential privacy here; what leaves a client is on the page Privacy of the docs"
_MODEL = "models stand in [[clients]]: model = 'cnn', and args for its arguments"
_FEWER = "fusion.upload_dtype and fusion.upload_top make uploads smaller, and so do 'cfd' and 'fedkd'"

ASKED: Mapping[str, str] = {
    # Called otherwise
    "participation": _SAMPLED,
    "participationrate": _SAMPLED,
    "participationfraction": _SAMPLED,
    "clientfraction": _SAMPLED,
    "clientsampling": _SAMPLED,
    "samplefraction": _SAMPLED,
    "fractionfit": _SAMPLED,
    "fractiontrain": _SAMPLED,
    "fractionevaluate": "it is evaluate_clients, the number of clients that are evaluated",
    "joinratio": _SAMPLED,
    "numclients": _CLIENTS,
    "nclients": _CLIENTS,
    "numrounds": "it is rounds",
    "communicationrounds": "it is rounds",
    "globalrounds": "it is rounds",
    "globalepochs": "it is rounds",
    "localsteps": _EPOCHS,
    "epochs": _EPOCHS,
    "localep": _EPOCHS,
    "localepochs": "it is training.local_epochs",
    "learningrate": "it is training.lr",
    "locallr": "it is training.lr",
    "batchsize": "it is training.batch_size",
    "localbatchsize": "it is training.batch_size",
    "lrscheduler": "it is training.schedule",
    "scheduler": "it is training.schedule",
    "patience": "it is training.early_stopping.patience",
    "mu": _PROXIMAL,
    "proximalmu": _PROXIMAL,
    "prox": _PROXIMAL,
    "dropout": _DROPOUT,
    "dropoutrate": _DROPOUT,
    "model": _MODEL,
    "models": _MODEL,
    "architecture": _MODEL,
    "backbone": _MODEL,
    "noniid": "how samples are dealt is data.partition, such as { scheme = 'dirichlet', alpha = 0.5 }",
    "dirichletalpha": "it is data.partition.alpha",
    "publicdata": "the samples that everybody holds are data.transfer",
    "proxydata": "the samples that everybody holds are data.transfer",
    "byzantine": "it is faults.poisoned, the share of poisoned clients, and faults.poison",
    "attack": "it is faults.poison, with faults.poisoned for the share of poisoned clients",
    "defence": "poisoned uploads are met by fusion.filters, or by a strategy such as 'cronus', 'flwr:Krum'",
    "aggregation": "it is fusion.strategy",
    "aggregator": "it is fusion.strategy",
    "gpus": "it is engine.gpus_per_actor",
    "numgpus": "it is engine.gpus_per_actor",
    "workers": "it is engine.actors",
    "numworkers": "it is engine.actors",
    "compression": _FEWER,
    "quantization": _FEWER,
    # Not there
    "lora": "there are no adapters here; a model of your own may have some: model = 'pkg.mod:factory'",
    "peft": "there are no adapters here; a model of your own may have some: model = 'pkg.mod:factory'",
    "secureaggregation": "there is no secure aggregation here; the docs say what a server sees (Privacy)",
    "encryption": "there is no encryption of uploads here; nodes of a deployment speak by TLS",
    "privacy": _PRIVACY,
    "differentialprivacy": _PRIVACY,
    "noisemultiplier": _PRIVACY,
    "dp": _PRIVACY,
    "augmentation": "there is no augmentation here; a data set of your own may bring augmented samples",
    "warmup": "there is no warm-up of learning rates here; training.schedule has what there is",
    "warmuprounds": "there is no warm-up of learning rates here; training.schedule has what there is",
}
"""Name of a key without case and underscores, to the end of an error."""


def asked_for(name: str) -> str | None:
    """Return the sentence for a key that is not there; None: nobody asks for it."""
    return ASKED.get(name.casefold().replace("_", "").replace("-", ""))
