"""The factory of checked models from a scenario's client groups."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.errors import UserError, blaming, described, refuse_if
from fedkd.models.adapter import add_adapter
from fedkd.models.estimator import Estimator, check_estimator, is_estimator_class
from fedkd.models.evaluation_mode import evaluation_mode
from fedkd.models.fast.kernel_mode import Allowance, FlopCounter
from fedkd.models.registry import MODELS
from fedkd.plugins import contain_plugin, plugin_call
from fedkd.randomness import seeded_torch
from fedkd.scenario import ClientGroup, Scenario


@dataclass(frozen=True, eq=False)
class ModelFactory:
    """Makes fresh models of a client group.

    `input_shape` of a sample is ``(channels, height, width)`` or ``(features,)``. `input_dtype` is float32,
    or int64 for integers such as token ids. `outputs` is the number of classes C, or more. `plugin_path` has
    the folders of ``.py`` files for ``"module:factory"``.
    """

    group: ClientGroup
    input_shape: Sequence[int]
    outputs: int
    plugin_path: Sequence[str | Path] = ()
    input_dtype: np.dtype | type = np.float32

    def load(self) -> None:
        """Import the model's code now; a `UserError` for unknown models or wrong arguments."""
        _factory(self.group, self.plugin_path)

    def make(self, seed: int) -> nn.Module | Estimator:
        """Return a fresh model: a float32 network on the CPU in training mode, or an estimator."""
        with seeded_torch(seed):
            model = self._call()
            if isinstance(model, nn.Module):
                model = model.to(device="cpu", dtype=torch.float32)
                # One forward pass finds a wrong shape before round 1, and sets the shapes of lazy layers.
                _check_forward(model, blank_inputs(2, self._shape, self.input_dtype), self.outputs)
                if self.group.adapter is not None:
                    add_adapter(model, self.group.adapter, self.group.model)
        if not isinstance(model, nn.Module):
            # Attributes of a plug-in object may raise.
            with plugin_call(f"'{self.group.model}' made a {type(model).__name__}, which", "clients.model"):
                check_estimator(self.group.model, model)
            told = f"needs a network, but model '{self.group.model}' is not one"
            refuse_if(self.group.adapter is not None, told, "clients.adapter")
            return model
        if count_parameters(model) == 0:
            raise UserError(f"'{self.group.model}' has no parameters to train", key="clients.model")
        return model.train()

    def fresh(self) -> Estimator:
        """Return a fresh estimator, if the group's model is one."""
        return self._call()

    def _call(self) -> Any:
        return _call(_factory(self.group, self.plugin_path), self.group, self._shape, self.outputs)

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(int(side) for side in self.input_shape)


def build_model(
    group: ClientGroup,
    input_shape: Sequence[int],
    classes: int,
    *,
    seed: int,
    plugin_path: Sequence[str | Path] = (),
    input_dtype: np.dtype | type = np.float32,
) -> nn.Module:
    """Return a fresh network of a client group (see `ModelFactory.make`), or raise a `UserError`."""
    model = ModelFactory(group, input_shape, classes, plugin_path, input_dtype).make(seed)
    if not isinstance(model, nn.Module):
        told = f"'{group.model}' returned a {type(model).__name__}; must be a torch.nn.Module"
        raise UserError(told, key="clients.model")
    return model


def build_group_models(
    scenario: Scenario,
    input_shape: Sequence[int],
    classes: int,
    input_dtype: np.dtype | type = np.float32,
    limit: tuple[int, str] | None = None,
) -> list[nn.Module | Estimator]:
    """Return one model of every client group, within a `limit` of bytes (see `Allowance`)."""
    models: list[nn.Module | Estimator] = []
    for index, group in enumerate(scenario.clients):
        try:
            factory = ModelFactory(group, input_shape, classes, scenario.plugin_path, input_dtype)
            with Allowance(*limit) if limit else nullcontext():
                models.append(factory.make(seed=0))
        except UserError as error:
            key = (error.key or "clients.model").replace("clients.", f"clients.{index}.", 1)
            raise UserError(error.message, key=key, file=error.file) from error
    return models


def _factory(group: ClientGroup, plugin_path: Sequence[str | Path]) -> Callable[..., Any]:
    with blaming(key="clients.model"):
        factory = MODELS.load(group.model, plugin_path)
    _check_args(factory, group)
    return factory


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable scalars of `model`."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def blank_inputs(
    number: int, shape: Sequence[int], dtype: np.dtype | type, device: torch.device | str = "cpu"
) -> Tensor:
    """Return samples of zeros `[number, *shape]`."""
    return torch.from_numpy(np.zeros((number, *shape), dtype)).to(device)


def forward_flops(
    model: nn.Module, input_shape: Sequence[int], input_dtype: np.dtype | type = np.float32
) -> int:
    """Return the operations of a sample's forward pass; if unknown, two per parameter."""
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    counter = FlopCounter()
    try:
        with seeded_torch(0), evaluation_mode(model), counter:
            model(blank_inputs(1, input_shape, input_dtype, device))
    except Exception:  # a user's model may raise anything; the count only orders work
        return 2 * count_parameters(model)
    return counter.total or 2 * count_parameters(model)


def _check_args(factory: Callable[..., Any], group: ClientGroup) -> None:
    told = f"'{group.model}' is not callable; must be factory(input_shape, classes, **args)"
    refuse_if(not callable(factory), told, "clients.model")
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # compiled callables have no signature
        return
    if is_estimator_class(factory) or _takes_keywords_alone(factory):
        own = parameters
    elif any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters[:2]):
        own = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    else:
        own = parameters[2:]
    accepted = [p.name for p in own if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no arguments"
    unknown = [name for name in group.args if name not in accepted]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise UserError(f"'{group.model}' has no argument '{unknown[0]}'; {takes}", key="clients.args")
    needed = [p.name for p in own if p.name in accepted and p.default is p.empty]
    missing = [name for name in needed if name not in group.args]
    if missing:
        raise UserError(f"'{group.model}' needs the argument '{missing[0]}'; {takes}", key="clients.args")


def _call(factory: Callable[..., Any], group: ClientGroup, shape: tuple[int, ...], classes: int) -> Any:
    with blaming(key="clients.model"), plugin_call(f"building '{group.model}'", "clients.model"):
        if is_estimator_class(factory):
            return factory(**group.args)
        if _takes_keywords_alone(factory):
            return factory(num_classes=classes, **group.args)
        return factory(shape, classes, **group.args)


def _takes_keywords_alone(factory: Callable[..., Any]) -> bool:
    """Return whether a factory is like torchvision's ``resnet18(*, weights=None)``."""
    try:
        kinds = {parameter.kind for parameter in inspect.signature(factory).parameters.values()}
    except (TypeError, ValueError):
        return False
    return bool(kinds) and kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


def _check_forward(model: nn.Module, inputs: Tensor, classes: int) -> None:
    try:
        with contain_plugin(), evaluation_mode(model):
            output = model(inputs)
    except Exception as error:
        kind = "" if inputs.is_floating_point() else " of integers"
        looks_up = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in model.modules())
        hint = "; embeddings need integers: set data.normalise = false"
        told = f"fails on an input {list(inputs.shape)}{kind} with {described(error)}"
        told += hint * (looks_up and inputs.is_floating_point())
        raise UserError(told, key="clients.model") from error
    got = str(list(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    told = f"returns {got} for 2 samples of {classes} classes; must be {[2, classes]}"
    refuse_if(got != str([2, classes]), told, "clients.model")
