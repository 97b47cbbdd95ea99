"""Loads the clients of a federation from this folder; needs torch, numpy and safetensors only.

python load.py                    # lists the clients

from load import load
client = load(3)                  # of a stream of tasks: load(3, task=0)
client.model                      # torch module in evaluation mode; maps normalised samples to logits
client.predict(x)                 # classes of samples as the data set stores them
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent
UNITS = "units"


class OfUnits(torch.nn.Module):
    """A network reduced to some of its outputs, those of a task."""

    def __init__(self, network: torch.nn.Module, units: list[int]) -> None:
        super().__init__()
        self.network = network
        self.units: torch.Tensor
        self.register_buffer(UNITS, torch.tensor(units), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] of normalised samples [B, ...]."""
        return self.network(x).index_select(1, self.units)


@dataclass(frozen=True)
class Loaded:
    """A client's model, its classes in the order of the outputs, and its normalisation."""

    model: torch.nn.Module
    classes: list[str]
    normalisation: dict[str, Any]
    permutation: list[int] | None
    degrees: float | None

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """Return samples [n, ...] of the data set, normalised as in training."""
        if self.degrees is not None:
            told = f"samples of this task are rotated by {self.degrees:g}°: pass rotated ones to `model`"
            raise ValueError(told)
        x, of = np.asarray(x), self.normalisation
        if of["integers"]:
            return x.astype(np.int64)
        mean, std = (np.array(of[name], dtype=np.float64) for name in ("mean", "std"))
        unit = 255.0 if x.dtype == np.uint8 else 1.0
        out = ((x.astype(np.float64) / unit - mean) / std).astype(np.float32)
        if self.permutation is None:
            return out
        return out.reshape(-1, len(self.permutation))[:, self.permutation].reshape(out.shape)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return [n, C] float32."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(self.normalise(x))).numpy()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the likeliest class of every sample, [n]: its name, or its number without a name."""
        places = self.logits(x).argmax(axis=1)
        numbered = self.classes == [str(number) for number in range(len(self.classes))]
        return places if numbered else np.array(self.classes)[places]


def clients() -> dict[str, Any]:
    """Return the content of clients.json."""
    return json.loads((FOLDER / "clients.json").read_text(encoding="utf-8"))


def load(client: int, task: int | None = None, network: torch.nn.Module | None = None) -> Loaded:
    """Return a client's model.

    Args:
        client: Its index.
        task: A task of the stream; None: the last that the client learned.
        network: Your module, if clients.json names none for the client.
    """
    known = clients()["clients"]
    if str(client) not in known:
        raise KeyError(f"no client {client}; there are {', '.join(known)}")
    models = known[str(client)]["models"]
    found = models[-1] if task is None else next((m for m in models if m["task"] == task), None)
    if found is None:
        raise KeyError(f"client {client} has no task {task}; it has {[m['task'] for m in models]}")
    if network is None:
        name = known[str(client)]["network"]
        if name is None:
            kind = known[str(client)]["architecture"]
            raise ValueError(f"client {client} needs `network`: a {kind} of yours")
        network = _class(name)()
    network.load_state_dict(load_file(FOLDER / found["file"]))
    model = network if found["units"] is None else OfUnits(network, found["units"])
    return Loaded(
        model.eval(), found["classes"], found["normalisation"], found["permutation"], found["degrees"]
    )


def _class(name: str) -> Any:
    spec = importlib.util.spec_from_file_location("networks", FOLDER / "networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def main() -> None:
    """List the clients."""
    for index, client in clients()["clients"].items():
        tasks = [model["task_name"] for model in client["models"] if model["task"] is not None]
        told = f", tasks: {'; '.join(tasks)}" if tasks else ""
        print(f"client {index}: {client['architecture']}, {client['parameters']:,} parameters{told}")


if __name__ == "__main__":
    main()
