"""Sums of per-sample gradients, squared or absolute, as importances of weights.

The square of a batch's mean gradient is far smaller, since the gradients of samples cancel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.models import evaluation_mode

Score = Callable[[Tensor, Tensor], Tensor]
"""From outputs ``[B, O]`` and labels ``[B]`` to one number a sample, ``[B]``."""
Magnitude = Callable[[Tensor], Tensor]
"""`torch.square` or `torch.abs`: of a product, the magnitude is the product of its factors' magnitudes."""

ROWS = 256
"""Most samples at a time."""
FLOATS = 2**24
"""About as many numbers may the gradients of single samples have that are held at a time (64 MiB)."""


def summed_gradients(network: nn.Module, x: Tensor, y: Tensor, score: Score, magnitude: Magnitude) -> Tensors:
    """Return ``Σ_n m(∂ score_n / ∂θ)``, in evaluation mode, for every parameter that requires a gradient.

    Exact for any network that treats samples independently. In a linear layer the gradient of sample n is
    ``g_n a_nᵀ``, with the output's gradient and the input, so the sum is the matrix product ``m(G)ᵀ m(A)``.
    Other parameters are differentiated sample by sample, vectorised where the network allows it.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    if not len(x):
        return sums
    with evaluation_mode(network), torch.enable_grad():
        linear, others = _sort(network, parameters, x[:2], y[:2], score)
        floats = sum(parameters[name].numel() for name in others)
        rows = min(ROWS, max(FLOATS // floats, 1)) if others else ROWS
        for start in range(0, len(x), rows):
            batch, labels = x[start : start + rows], y[start : start + rows]
            for name, a, g in _linear_factors(network, linear, batch, labels, score):
                weight, bias = (f"{name}.{kind}" if name else kind for kind in ("weight", "bias"))
                if weight in sums:
                    sums[weight] += magnitude(g).T @ magnitude(a)
                if bias in sums:
                    sums[bias] += magnitude(g).sum(0)
            for gradients in _sample_gradients(network, others, batch, labels, score):
                for name, values in gradients.items():
                    sums[name] += magnitude(values).sum(0)
    return sums


def _sort(
    network: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, score: Score
) -> tuple[list[str], list[str]]:
    """Return the names of linear layers with outer-product gradients, and of other parameters.

    The former see one vector per sample, once, and share no weights. Unused parameters are in neither.
    """
    # Subclasses and parametrisations may use the weight in other ways.
    names = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    with _Recorder(network, names) as seen:
        uses = _uses(score(network(x), y).sum())
    linear, covered = [], set()
    for name, calls in seen.calls.items():
        own = {f"{name}.{kind}" if name else kind for kind in ("weight", "bias")} & parameters.keys()
        once = len(calls) == 1 and calls[0][0].dim() == 2 and len(calls[0][0]) == len(x)
        if own and once and all(uses[id(parameters[one])] == 1 for one in own):
            linear.append(name)
            covered |= own
    return linear, [name for name, p in parameters.items() if name not in covered and uses[id(p)]]


def _uses(value: Tensor) -> Counter[int]:
    """Return how many operations of a value's graph read each leaf, by the leaf's id."""
    uses: Counter[int] = Counter()
    seen, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        for following, _ in node.next_functions if node is not None else ():
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                uses[id(leaf)] += 1
            elif following is not None and following not in seen:
                seen.add(following)
                ahead.append(following)
    return uses


class _Recorder:
    """Notes inputs and outputs of modules by name, in the forward passes of a block."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
        self._network = network

    def __enter__(self) -> _Recorder:
        self._handles = [
            self._network.get_submodule(name).register_forward_hook(self._note(calls))
            for name, calls in self.calls.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @staticmethod
    def _note(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            calls.append((inputs[0].detach(), output))
            return output.clone()  # later modules may overwrite it, like ReLU(inplace=True)

        return note


def _linear_factors(
    network: nn.Module, names: Sequence[str], x: Tensor, y: Tensor, score: Score
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each linear layer's name, inputs a ``[B, n]`` and gradients g ``[B, out]`` of its outputs."""
    if not names:
        return
    with _Recorder(network, names) as seen:
        total = score(network(x), y).sum()
    inputs, outputs = zip(*(seen.calls[name][0] for name in names), strict=True)
    yield from zip(names, inputs, torch.autograd.grad(total, outputs), strict=True)


def _sample_gradients(
    network: nn.Module, names: Sequence[str], x: Tensor, y: Tensor, score: Score
) -> Iterator[Tensors]:
    """Yield per-sample gradients ``[n, ...]`` by name, of all samples at once or one by one."""
    if not names:
        return
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def score_of_one(own: Tensors, sample: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(network, {**parameters, **own}, (sample[None],))
        return score(outputs, label[None])[0]

    own = {name: parameters[name] for name in names}
    try:
        together = vmap(grad(score_of_one), in_dims=(None, 0, 0))(own, x, y)
    except RuntimeError:  # some networks cannot be vectorised: they may branch on the sample
        for sample, label in zip(x, y, strict=True):
            yield {name: g[None] for name, g in grad(score_of_one)(own, sample, label).items()}
    else:
        yield together


def some_samples(context: LearnerContext, number: int | None) -> tuple[Tensor, Tensor]:
    """Return samples ``[n, *input_shape]`` and labels ``[n]`` of the present task, none twice; None: all."""
    x, y = context.samples()
    if number is None or number >= len(x):
        return x, y
    chosen = torch.randperm(len(x), generator=context.generator("importance"))[:number].to(x.device)
    return x[chosen], y[chosen]
