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

from fedkd.data import KINDS, SampleKind, inferred_kind
from fedkd.errors import UserError, blaming, described, refuse_if
from fedkd.models.adapter import add_adapter
from fedkd.models.estimator import Estimator, check_estimator, is_estimator_class
from fedkd.models.evaluation_mode import evaluation_mode
from fedkd.models.fast.kernel_mode import Allowance, FlopCounter
from fedkd.models.registry import MODEL_KINDS, MODELS, REGRESSORS
from fedkd.models.regressor import check_regressor, is_regressor_class
from fedkd.plugins import contain_plugin, plugin_call
from fedkd.randomness import seeded_torch
from fedkd.scenario import ClientGroup, Scenario


@dataclass(frozen=True, eq=False)
class ModelFactory:
    """Makes fresh models of a client group.

    `input_shape` is the shape of a sample of `kind` (None: inferred from the shape). `outputs` is the number
    of classes C, or more. `plugin_path` has the folders of ``.py`` files for ``"module:factory"``.
    """

    group: ClientGroup
    input_shape: Sequence[int]
    outputs: int
    plugin_path: Sequence[str | Path] = ()
    kind: SampleKind | None = None
    regression: bool = False

    @property
    def input_dtype(self) -> np.dtype:
        """Type of the samples."""
        return self._kind.dtype

    def load(self) -> None:
        """Import the model's code now; a `UserError` for unknown models or wrong arguments."""
        _factory(self.group, self.plugin_path, self.regression)

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
                (check_regressor if self.regression else check_estimator)(self.group.model, model)
            told = f"needs a network, but model '{self.group.model}' is not one"
            refuse_if(self.group.adapter is not None, told, "clients.adapter")
            return model
        if count_parameters(model) == 0:
            raise UserError(f"'{self.group.model}' has no parameters to train", key="clients.model")
        return model.train()

    def fresh(self) -> Any:
        """Return a fresh estimator or regressor, if the group's model is one."""
        return self._call()

    def _call(self) -> Any:
        factory = _factory(self.group, self.plugin_path, self.regression)
        _check_kind(factory, self.group.model, self._kind, self._shape)
        vocabulary = self._kind.vocabulary
        return _call(factory, self.group, self._shape, self.outputs, self.regression, vocabulary)

    @property
    def _kind(self) -> SampleKind:
        return self.kind or inferred_kind(self._shape)

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
    kind: SampleKind | None = None,
) -> nn.Module:
    """Return a fresh network of a client group (see `ModelFactory.make`), or raise a `UserError`."""
    model = ModelFactory(group, input_shape, classes, plugin_path, kind).make(seed)
    if not isinstance(model, nn.Module):
        told = f"'{group.model}' returned a {type(model).__name__}; must be a torch.nn.Module"
        raise UserError(told, key="clients.model")
    return model


def build_group_models(
    scenario: Scenario,
    input_shape: Sequence[int],
    classes: int,
    kind: SampleKind | None = None,
    limit: tuple[int, str] | None = None,
) -> list[nn.Module | Estimator]:
    """Return one model of every client group, within a `limit` of bytes (see `Allowance`)."""
    models: list[nn.Module | Estimator] = []
    for index, group in enumerate(scenario.clients):
        try:
            numeric = scenario.data.is_regression
            factory = ModelFactory(group, input_shape, classes, scenario.plugin_path, kind, numeric)
            with Allowance(*limit) if limit else nullcontext():
                models.append(factory.make(seed=0))
        except UserError as error:
            key = (error.key or "clients.model").replace("clients.", f"clients.{index}.", 1)
            raise UserError(error.message, key=key, file=error.file) from error
    return models


def _factory(group: ClientGroup, plugin_path: Sequence[str | Path], regression: bool) -> Callable[..., Any]:
    with blaming(key="clients.model"):
        name = REGRESSORS.get(group.model, group.model) if regression else group.model
        factory = MODELS.load(name, plugin_path)
    _check_args(factory, group, regression)
    return factory


def _check_kind(factory: Any, model: str, kind: SampleKind, shape: tuple[int, ...]) -> None:
    """Refuse a model that does not take samples of a kind."""
    takes = MODEL_KINDS.get(model, getattr(factory, "kinds", None))
    if takes is None or (kind.name in takes and kind.fits(shape)):
        return
    fitting = [name for name, kinds in MODEL_KINDS.items() if kind.name in kinds and kind.fits(shape)]
    wanted = " or ".join(KINDS[name].form for name in takes if name in KINDS)
    told = f"'{model}' takes {wanted}, but the samples are {kind.plural} {list(shape)};"
    told += f" use {', '.join(map(repr, fitting))}" if fitting else " use a model of yours"
    text = "text" in takes and kind.name == "vector"
    raise UserError(told + ', or data.args.kind = "text" for token ids' * text, key="clients.model")


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


def _check_args(factory: Callable[..., Any], group: ClientGroup, regression: bool) -> None:
    told = f"'{group.model}' is not callable; must be factory(input_shape, classes, **args)"
    refuse_if(not callable(factory), told, "clients.model")
    parameters = _parameters(factory)
    if parameters is None:
        return
    if _is_class(factory, regression) or _takes_keywords_alone(factory):
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


def _is_class(factory: Any, regression: bool) -> bool:
    return is_regressor_class(factory) if regression else is_estimator_class(factory)


def _call(
    factory: Callable[..., Any],
    group: ClientGroup,
    shape: tuple[int, ...],
    classes: int,
    regression: bool,
    vocabulary: int,
) -> Any:
    args = group.args
    if vocabulary and any(parameter.name == "vocabulary" for parameter in _parameters(factory) or ()):
        args = {"vocabulary": vocabulary} | args
    with blaming(key="clients.model"), plugin_call(f"building '{group.model}'", "clients.model"):
        if _is_class(factory, regression):
            return factory(**args)
        if _takes_keywords_alone(factory):
            return factory(num_classes=classes, **args)
        return factory(shape, classes, **args)


def _takes_keywords_alone(factory: Callable[..., Any]) -> bool:
    """Return whether a factory is like torchvision's ``resnet18(*, weights=None)``."""
    kinds = {parameter.kind for parameter in _parameters(factory) or ()}
    return bool(kinds) and kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return a factory's parameters; None for compiled callables, which have no signature."""
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return None


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
