"""Samples out of a network alone: a generator is trained until the network recognises what it makes.

The terms of the generator's loss, and the loop that alternates between it and a student: H. Chen et al.,
"Data-Free Learning of Student Networks", ICCV 2019; the statistics after H. Yin et al., "Dreaming to
Distill", CVPR 2020; as in J. Zhang et al., "TARGET", ICCV 2023. Of teacher t and student s only the logits of
the classes met count::

    L_G =   w_label · CE(t(x̂), y)                                      the label that was asked for
          + w_stat · Σ_l (‖μ_l(x̂) − μ_l‖ + ‖σ²_l(x̂) − σ²_l‖)           what normalisation layers are used to
          − w_adv · mean_i a_i D(t(x̂_i) ‖ s(x̂_i))                      what the student has yet to learn
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import TrainingDiverged
from fedkd.models.generator import Generator
from fedkd.models.mode import predicting
from fedkd.randomness import seeded_torch
from fedkd.training.compat import BatchNorm
from fedkd.training.device import torch_threads
from fedkd.training.losses import cross_entropy, kd_kl
from fedkd.training.uncompiled import uncompiled

Divergence = Literal["kl", "js"]
BETAS = (0.5, 0.999)
"""Of the generator's Adam: the student changes what it is after, so old gradients soon mislead."""


@dataclass(frozen=True)
class Recipe:
    """How samples are made.

    Attributes:
        samples: How many, M ≥ 2.
        batch_size: Samples that are made at once, ≥ 2; up to twice as many where M is no multiple of it.
        steps: Steps of the generator for each batch.
        lr: Learning rate of its Adam.
        label_weight: Of the cross entropy to the label that was asked for.
        statistics_weight: Of the distance to the teacher's running statistics.
        adversarial_weight: Of the divergence between teacher and student; 0: there is no student.
        divergence: Which.
        student_steps: Steps of the student after each batch, on batches of all samples so far.
        student_lr: Learning rate of its Adam.
        noise: Length of a noise vector.
        width: Of the generator.
    """

    samples: int
    batch_size: int
    steps: int
    lr: float
    label_weight: float
    statistics_weight: float
    adversarial_weight: float
    divergence: Divergence
    student_steps: int
    student_lr: float
    noise: int
    width: int


class Synthetic(NamedTuple):
    """Samples, and what they are.

    Attributes:
        samples: ``[M, *input_shape]``.
        labels: ``[M]``, the labels that were asked for: output units.
        logits: ``[M, K]``, what the teacher says of the classes met, in their order.
    """

    samples: Tensor
    labels: Tensor
    logits: Tensor


# The terms --------------------------------------------------------------------------------------------


def divergence_by_sample(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """Return ``KL(t_i ‖ s_i)``, or Jensen and Shannon's ``½ KL(t_i ‖ m_i) + ½ KL(s_i ‖ m_i)``, ``[B]``.

    Args:
        teacher: Logits ``[B, K]`` of t.
        student: Logits ``[B, K]`` of s.
        kind: Which; m = ½ (t + s).
    """
    t, s = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    if kind == "kl":
        return (t.exp() * (t - s)).sum(dim=1)
    m = torch.logaddexp(t, s) - torch.log(torch.tensor(2.0))
    return 0.5 * (t.exp() * (t - m)).sum(dim=1) + 0.5 * (s.exp() * (s - m)).sum(dim=1)


def adversarial_term(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """Return ``− mean_i a_i D(t_i ‖ s_i)``, a_i = 1 where both name the same class, else 0.

    Samples are wanted that the student has yet to learn about, but where it is wrong already there is nothing
    to gain: a divergence without bound would draw the generator to where the teacher is wrong itself.

    Args:
        teacher: Logits ``[B, K]``.
        student: Logits ``[B, K]``.
        kind: Of the divergence.
    """
    agree = teacher.argmax(dim=1) == student.argmax(dim=1)
    return -(divergence_by_sample(teacher, student, kind) * agree).mean()


def statistics_distance(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return ``‖μ(u) − μ‖₂ + ‖σ²(u) − σ²‖₂`` of what a normalisation layer receives, a scalar.

    Args:
        inputs: u, ``[B, F, ...]``.
        mean: Running mean μ, ``[F]``.
        variance: Running variance σ², ``[F]``.
    """
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    found, spread = inputs.mean(dim=axes), inputs.var(dim=axes, unbiased=False)
    return (found - mean).norm() + (spread - variance).norm()


@contextmanager
def statistics_read(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that takes the `statistics_distance` of every normalisation layer in a forward pass.

    Layers without running statistics say nothing.
    """
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


# The loop ---------------------------------------------------------------------------------------------


def draw_labels(count: int, classes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return positions ``[count]`` in the classes met: all equally often, up to one, in random order."""
    lap = torch.arange(count) % len(classes)
    turned = torch.randperm(len(classes), generator=generator)[lap]
    return turned[torch.randperm(count, generator=generator)]


def synthesise(
    teacher: nn.Module,
    student: nn.Module,
    input_shape: Sequence[int],
    classes: Sequence[int],
    recipe: Recipe,
    seed: int,
) -> Synthetic:
    """Return samples of the classes that the teacher has met.

    For each batch noise and labels are drawn, the generator takes its steps on them, and what it then makes
    of them is kept; before the next batch the student learns from all that is kept. Generator and student go
    on from batch to batch. On one thread: how many share a sum decides its last bit.

    Args:
        teacher: On the CPU; it is left as it is.
        student: A network of any kind with the same outputs; it is trained in place.
        input_shape: Of a sample.
        classes: The classes met, as outputs of both, K of them.
        recipe: How.
        seed: Derived seed of all draws.

    Raises:
        TrainingDiverged: Samples, or what the teacher says of them, are no finite numbers.
    """
    met = torch.tensor(list(classes))
    draws = torch.Generator().manual_seed(seed)
    with torch_threads(1), seeded_torch(seed), _frozen(teacher), torch.enable_grad():
        generator = Generator(input_shape, len(met), recipe.noise, recipe.width)
        optimizer = uncompiled(torch.optim.Adam)(generator.parameters(), lr=recipe.lr, betas=BETAS)
        learning = uncompiled(torch.optim.Adam)(student.parameters(), lr=recipe.student_lr)
        labels = draw_labels(recipe.samples, classes, draws)
        kept: list[Tensor] = []
        said: list[Tensor] = []
        # None smaller than the batch size: a batch of one has no variance.
        for own in labels.tensor_split(max(recipe.samples // recipe.batch_size, 1)):
            noise = torch.randn(len(own), recipe.noise, generator=draws)
            rival = student if kept and recipe.adversarial_weight > 0.0 else None
            for _ in range(recipe.steps):
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
            if recipe.adversarial_weight > 0.0 and sum(map(len, kept)) < recipe.samples:
                _distil(student, learning, torch.cat(kept), torch.cat(said), met, recipe, draws)
    return Synthetic(torch.cat(kept), met[labels], torch.cat(said))


def _generator_loss(
    x: Tensor, labels: Tensor, teacher: nn.Module, student: nn.Module | None, met: Tensor, recipe: Recipe
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
    recipe: Recipe,
    draws: torch.Generator,
) -> None:
    """Train the student towards what the teacher says of samples."""
    student.train()
    size = min(recipe.batch_size, len(samples))
    for _ in range(recipe.student_steps):
        rows = torch.randint(len(samples), (size,), generator=draws)
        loss = kd_kl(student(samples[rows])[:, met], logits[rows].softmax(dim=1), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and have it gather no gradients of its own."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with predicting(model):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
