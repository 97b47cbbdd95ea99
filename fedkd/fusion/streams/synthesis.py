"""Samples from a network alone: a generator is trained until the network recognises its samples.

The generator's loss and the alternation with a student follow H. Chen et al., "Data-Free Learning of Student
Networks", ICCV 2019. The statistics follow H. Yin et al., "Dreaming to Distill", CVPR 2020. Both are combined
as in J. Zhang et al., "TARGET", ICCV 2023. Logits of teacher t and student s are restricted to the classes
seen::

    L_G =   w_label · CE(t(x̂), y)                                      the wanted label
          + w_stat · Σ_l (‖μ_l(x̂) − μ_l‖ + ‖σ²_l(x̂) − σ²_l‖)           statistics of normalisation layers
          − w_adv · mean_i a_i D(t(x̂_i) ‖ s(x̂_i))                      novelty for the student
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import TrainingDiverged
from fedkd.models import Generator, evaluation_mode
from fedkd.randomness import seeded_torch
from fedkd.training import BatchNorm, cross_entropy, kd_kl, limit_torch_threads, uncompiled_class

if TYPE_CHECKING:
    from fedkd.fusion.streams.target import Target

Divergence = Literal["kl", "js"]
BETAS = (0.5, 0.999)
"""Of the generator's Adam: the student changes its aim, so old gradients soon mislead."""


class Synthetic(NamedTuple):
    """Samples ``[M, *input_shape]``, their wanted labels ``[M]``, and logits ``[M, K]`` of seen classes."""

    samples: Tensor
    labels: Tensor
    logits: Tensor


def divergence_by_sample(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """Return ``KL(t_i ‖ s_i)`` or Jensen–Shannon divergences of logits ``[B, K]``, ``[B]``."""
    t, s = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    if kind == "kl":
        return (t.exp() * (t - s)).sum(dim=1)
    m = torch.logaddexp(t, s) - torch.log(torch.tensor(2.0))
    return 0.5 * (t.exp() * (t - m)).sum(dim=1) + 0.5 * (s.exp() * (s - m)).sum(dim=1)


def adversarial_term(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """Return ``− mean_i a_i D(t_i ‖ s_i)`` of logits ``[B, K]``; a_i = 1 where t and s agree, else 0.

    Where the student is wrong already, an unbounded divergence would pull the generator towards the teacher's
    own errors.
    """
    agree = teacher.argmax(dim=1) == student.argmax(dim=1)
    return -(divergence_by_sample(teacher, student, kind) * agree).mean()


def statistics_distance(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return ``‖μ(u) − μ‖₂ + ‖σ²(u) − σ²‖₂`` of a normalisation layer's inputs u ``[B, F, ...]``."""
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    spread = inputs.var(dim=axes, unbiased=False)
    return (inputs.mean(dim=axes) - mean).norm() + (spread - variance).norm()


@contextmanager
def statistics_read(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that collects the `statistics_distance` of each layer in a forward pass."""
    distances: list[Tensor] = []

    def read(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mean, variance = module.running_mean, module.running_var
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        distances.append(statistics_distance(arguments[0], mean, variance))

    layers = [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    hooks = [layer.register_forward_pre_hook(read) for layer in layers]
    try:
        yield distances
    finally:
        for hook in hooks:
            hook.remove()


def draw_labels(count: int, classes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return positions ``[count]`` in the seen classes, in random order, as evenly as possible."""
    lap = torch.arange(count) % len(classes)
    turned = torch.randperm(len(classes), generator=generator)[lap]
    return turned[torch.randperm(count, generator=generator)]


def synthesise(
    teacher: nn.Module,
    student: nn.Module,
    input_shape: Sequence[int],
    classes: Sequence[int],
    recipe: Target,
    seed: int,
) -> Synthetic:
    """Return samples of the `classes` that the teacher has seen, given by their outputs.

    For each batch the generator takes its steps on drawn noise and labels, and its samples are kept. Then the
    student is trained on all samples so far. Torch runs on one thread, since the number of threads changes
    the last bits of sums.
    """
    met = torch.tensor(list(classes))
    draws = torch.Generator().manual_seed(seed)
    with limit_torch_threads(1), seeded_torch(seed), _frozen(teacher), torch.enable_grad():
        generator = Generator(input_shape, len(met), recipe.noise, recipe.generator_width)
        optimizer = uncompiled_class(torch.optim.Adam)(
            generator.parameters(), lr=recipe.generator_lr, betas=BETAS
        )
        learning = uncompiled_class(torch.optim.Adam)(student.parameters(), lr=recipe.student_lr)
        labels = draw_labels(recipe.samples, classes, draws)
        kept: list[Tensor] = []
        said: list[Tensor] = []
        # None smaller than the batch size: a batch of one has no variance.
        for own in labels.tensor_split(max(recipe.samples // recipe.synthesis_batch_size, 1)):
            noise = torch.randn(len(own), recipe.noise, generator=draws)
            rival = student if kept and recipe.adversarial_weight > 0.0 else None
            for _ in range(recipe.generator_steps):
                loss = _generator_loss(generator(noise, own), own, teacher, rival, met, recipe)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                kept.append(generator(noise, own))
                said.append(teacher(kept[-1]).float()[:, met])
            if not (kept[-1].isfinite().all() and said[-1].isfinite().all()):
                raise TrainingDiverged(
                    "the generator of the server diverged; a lower fusion.generator_lr may help"
                )
            samples, logits = torch.cat(kept), torch.cat(said)
            if recipe.adversarial_weight > 0.0 and len(samples) < recipe.samples:
                _distil(student, learning, samples, logits, met, recipe, draws)
    return Synthetic(samples, met[labels], logits)


def _generator_loss(
    x: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module | None, met: Tensor, recipe: Target
) -> Tensor:
    """Return L_G of a batch of samples ``[B, *input_shape]``."""
    with statistics_read(teacher) as distances:
        told = teacher(x).float()[:, met]
    loss = recipe.label_weight * cross_entropy(told, labels)
    if distances:
        loss = loss + recipe.statistics_weight * torch.stack(distances).sum()
    if student is not None:
        student.eval()
        answered = student(x).float()[:, met]
        loss = loss + recipe.adversarial_weight * adversarial_term(told, answered, recipe.divergence)
    return loss


def _distil(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: Tensor,
    logits: Tensor,
    met: Tensor,
    recipe: Target,
    draws: torch.Generator,
) -> None:
    student.train()
    size = min(recipe.synthesis_batch_size, len(samples))
    for _ in range(recipe.student_steps):
        rows = torch.randint(len(samples), (size,), generator=draws)
        loss = kd_kl(student(samples[rows])[:, met], logits[rows].softmax(dim=1), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without gradients of its weights in the block."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
