"""Device, threads and memory layout of models and arrays."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.models import use_torch_kernels
from fedkd.training.fast.thread_pools import thread_pools


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: ``"auto"`` (a GPU if one is visible), ``"cpu"`` or ``"cuda"``."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"must be auto, cpu or cuda, got '{name}'", key="engine.device")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'", key="engine.device")
    if available and name != "cpu":
        # cuDNN's fastest algorithms differ from run to run in the last bit.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        return torch.device("cuda")
    return torch.device("cpu")


@contextmanager
def limit_torch_threads(number: int) -> Iterator[None]:
    """Set the number of torch threads in the block; it affects the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def limit_all_threads(number: int) -> Iterator[None]:
    """Limit every thread pool of the process, such as scikit-learn's, in the block."""
    with limit_torch_threads(number), thread_pools().limit(limits=number):
        yield


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor that shares an array's memory, which must not change (Ray's is read-only)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def prepare_model(model: nn.Module, device: torch.device | str, *, fast: bool = True) -> nn.Module:
    """Move `model` to the device, with 2-D convolutions channels last, which is faster.

    Such weights are not contiguous: call ``.contiguous()`` before bytes are written. `fast` allows fedkd's
    own kernels.
    """
    model = model.to(device)
    if not fast:
        use_torch_kernels(model)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # the stubs of Module.to() lack it
        model = model.to(**layout)
    return model


def prepare_inputs(array: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """Return an array as a tensor on the device, without a copy if possible; images stay channels first."""
    tensor = as_tensor(array) if isinstance(array, np.ndarray) else array
    return tensor.to(device)
