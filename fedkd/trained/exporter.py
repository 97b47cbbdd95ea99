"""``fedkd export``: a run's clients as safetensors, with a model card and loading code.

DIR/export/README.md                    the model card
           load.py, networks.py         load them with torch, numpy and safetensors alone
           clients.json                 networks, classes, normalisation
           client-00003.safetensors     one a client, or one a client and task whose weights differ
"""

import inspect
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fedkd import __version__
from fedkd.data import Permutation, Rotation
from fedkd.errors import UserError, refuse_if
from fedkd.models import count_parameters
from fedkd.storage import expand_path
from fedkd.tracking import remove_leftovers
from fedkd.trained import standalone
from fedkd.trained.card import Entry, model_card
from fedkd.trained.client import TrainedClient, TrainedRun
from fedkd.trained.network import HEADER, OfUnits, network_source

FOLDER = "export"
CLIENTS = "clients.json"
NETWORKS = "networks.py"


@dataclass(frozen=True)
class Export:
    """Indices of the clients exported, left out with a reason, and exported without source."""

    folder: Path
    clients: tuple[int, ...]
    left_out: dict[int, str]
    without_network: tuple[int, ...]


def export(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    round: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Export:
    """Write a run's clients to a folder, whole or not at all.

    Args:
        out: The folder, by default ``export`` in the run folder; an earlier export is replaced.
        round: A round with a checkpoint; None: the last.

    Raises:
        UserError: There is no client to export, or `out` holds other files or cannot be written.
    """
    run = TrainedRun(folder, round, progress)
    told = "exports have classes, but its data.task is 'regression'; fedkd.load_client loads its clients"
    refuse_if(run.plan.scenario.data.is_regression, told, None, file=str(run.folder))
    target = expand_path(out, key="--out").absolute() if out else run.folder / FOLDER
    foreign = target.exists() and not (target / CLIENTS).is_file()
    if foreign and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} holds files that are not an export; choose another folder", key="--out")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        remove_leftovers(target.parent, target.name)
        partial.mkdir(parents=True)
        try:
            made = _Writer(run, partial).write()
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}", key="--out") from error
    return Export(target, *made)


class _Writer:
    def __init__(self, run: TrainedRun, folder: Path) -> None:
        self._run, self._folder = run, folder
        self._classes: dict[str, str] = {}  # source of a class called Network → its name in the export
        self._entries: list[Entry] = []

    def write(self) -> tuple[tuple[int, ...], dict[int, str], tuple[int, ...]]:
        run, clients, left_out = self._run, dict[int, dict[str, Any]](), dict[int, str]()
        for index in range(run.plan.scenario.data.clients):
            client = run.client(index)
            if isinstance(client.model, nn.Module):
                clients[index] = self._client(client)
            else:
                kind = "nothing yet" if client.model is None else f"a {type(client.model).__name__}"
                left_out[index] = f"its model is {kind}, not a network of tensors; see fedkd.load_client"
        if not clients:
            kind = left_out[0].partition(",")[0].removeprefix("its model is ")
            why = f"no client of this run has a network of tensors, client 0 has {kind}"
            raise UserError(f"{why}; fedkd.load_client loads them", file=str(run.folder))
        described: dict[str, Any] = {"fedkd": __version__, "run": run.plan.scenario.name, "round": run.round}
        described["clients"] = {str(index): client for index, client in clients.items()}
        text = json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False)
        (self._folder / CLIENTS).write_text(f"{text}\n", encoding="utf-8")
        sources = [
            source.replace("class Network(", f"class {name}(", 1) for source, name in self._classes.items()
        ]
        (self._folder / NETWORKS).write_text("\n\n".join([HEADER, *sources]), encoding="utf-8")
        (self._folder / "load.py").write_text(inspect.getsource(standalone), encoding="utf-8")
        (self._folder / "README.md").write_text(model_card(run, self._entries, left_out), encoding="utf-8")
        without = tuple(index for index, client in clients.items() if client["network"] is None)
        return tuple(clients), left_out, without

    def _client(self, client: TrainedClient) -> dict[str, Any]:
        read = [client.of_task(task) for task in client.tasks] or [client]
        models = [of_task.model for of_task in read]
        networks = [model.network if isinstance(model, OfUnits) else model for model in models]
        states, stem = [network.state_dict() for network in networks], f"client-{client.index:05d}"
        same = all(torch.equal(states[0][name], state[name]) for state in states[1:] for name in states[0])
        told, dtype = [], self._run.data.input_dtype
        for of_task, network in zip(read, networks, strict=True):
            file = f"{stem}.safetensors" if same else f"{stem}-task-{of_task.task:03d}.safetensors"
            if not (self._folder / file).exists():
                self._save(file, network, of_task)
            told.append(_described(of_task, file, dtype.kind == "i"))
        source = network_source(networks[0], "Network", client.input_shape, dtype)
        name = None if source is None else self._classes.setdefault(source, f"Network{len(self._classes)}")
        parameters, kind, owner = count_parameters(networks[0]), client.architecture, client.owner
        self._entries.append(Entry(client.index, kind, parameters, told[-1]["file"], name, owner))
        owned = {} if owner is None else {"owner": owner}
        return {"architecture": kind, **owned, "parameters": parameters, "network": name, "models": told}

    def _save(self, file: str, network: nn.Module, client: TrainedClient) -> None:
        row_by_row = torch.contiguous_format  # safetensors takes no shared memory
        tensors = {
            name: tensor.detach().cpu().contiguous(memory_format=row_by_row).clone()
            for name, tensor in network.state_dict().items()
        }
        told = {"format": "pt", "run": self._run.plan.scenario.name, "client": str(client.index)}
        told |= {"round": str(client.round), "architecture": client.architecture}
        save_file(tensors, self._folder / file, metadata=told)


def _described(client: TrainedClient, file: str, integers: bool) -> dict[str, Any]:
    units = client.model.units.tolist() if isinstance(client.model, OfUnits) else None
    transform, statistics = client.transform, client.normalisation
    normalisation = {"mean": statistics.mean.tolist(), "std": statistics.std.tolist(), "integers": integers}
    return {
        "task": client.task,
        "task_name": client.task_name,
        "file": file,
        "units": units,
        "classes": list(client.classes),
        "input_shape": list(client.input_shape),
        "normalisation": normalisation,
        "permutation": transform.source.tolist() if isinstance(transform, Permutation) else None,
        "degrees": transform.degrees if isinstance(transform, Rotation) else None,
    }
