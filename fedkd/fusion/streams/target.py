"""TARGET: rehearsal of server-generated samples (Zhang et al., ICCV 2023, arXiv 2303.06937)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, LocalObjective, softmax
from fedkd.fusion.views import Arrays, ClientView, Rehearsal, ServerModels
from fedkd.fusion.weights.averaging import AVERAGED, AveragedNetwork
from fedkd.fusion.weights.parameters import PACKED, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor

SYNTHETIC, SOFT_LABELS, CLASSES = "synthetic", "soft_labels", "classes"


@hyperparameters
class Target(LocalObjective, AveragedNetwork):
    """FedAvg; after each task the server generates samples that clients rehearse.

    ::

        w     ← Σ_n samples_n w_n / Σ_n samples_n                    every round
        x̂     = G(noise, label), labels among the classes seen       when a task ends and another follows
        t(x̂)  = softmax(z_w(x̂) / T) over the classes seen
        loss  = CE(z(x), y) + λ · T² · mean KL(t(x̂) ‖ softmax(z(x̂) / T))    in the tasks that follow

    The server has no data. It trains G on the average's cross entropy to the label, on the statistics of
    normalisation layers, and against a student that learns from all samples so far (see
    `fedkd.fusion.streams.synthesis`). Every client receives samples and t with the last average of the task.
    It keeps them until the next ones, of all classes seen by then.

    The released code restricts the cross entropy to the classes of the present task; here all classes
    compete.
    """

    name: ClassVar[str] = "target"
    paper: ClassVar[str] = (
        "Zhang et al., TARGET: Federated Class-Continual Learning via Exemplar-Free Distillation, ICCV 2023"
    )

    strength: Annotated[float, Field(ge=0)] = 6.0
    """λ: weight of rehearsal; the released 25 counts without T², which makes it 6.25. With 1 a new task is
    learned better and old ones are gone after two or three more. 0 is FedAvg: nothing is made or sent."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 2.0
    """T of what is rehearsed; 2 in the released code. The higher, the more the unlikely classes count."""
    distil: Literal["met", "all"] = "all"
    """Outputs of rehearsal: of the classes met when the samples were made (`met`, as released), or `all`,
    which also teaches that such a sample is none of a later class."""
    samples: Annotated[int, Field(ge=2)] = 1024
    """Samples that stand in for earlier tasks; 8,000 of CIFAR-100 in the released code. Every client
    receives all of them after each task, four bytes a number."""
    synthesis_batch_size: Annotated[int, Field(ge=2)] = 128
    """Samples that the generator makes at once, and is trained on together; 256 in the released code."""
    generator_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of the generator for each such batch; this, times samples, is what the end of a task costs."""
    generator_lr: Annotated[float, Field(gt=0)] = 2e-3
    """Learning rate of the generator's Adam; 0.002 in the released code."""
    generator_width: Annotated[int, Field(gt=0, le=1024)] = 32
    """Channels of the generator's last hidden layer, half of those before; 64 in the released code. Costs
    grow with its square."""
    noise: Annotated[int, Field(gt=0, le=65536)] = 64
    """Length of the noise that a sample is made out of; 256 in the released code."""
    label_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross entropy to the label that was asked for; 0.5 in the released code."""
    statistics_weight: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the distance to running statistics; 10 in the released code. Without normalisation layers it
    has no effect, and samples look less like data."""
    adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of what the student has left to learn; 1 in the released code. 0 does without a student."""
    divergence: Literal["kl", "js"] = "kl"
    """Kullback–Leibler divergence of teacher and student, or Jensen–Shannon's, which has a bound."""
    student_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of the student on all samples so far, after each batch of them; 400 in the released code."""
    student_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the student's Adam, on batches as large as the generator's."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return replace(
            AVERAGED,
            receives={**PACKED, SYNTHETIC: "*", SOFT_LABELS: "n K", CLASSES: "K"},
            needs=AVERAGED.needs | {"class_stream", "normalised_samples"},
            reach="all clients, the same, with their next message; samples at the end of a task",
            generated_samples=self.samples,
        )

    def end_task(self, knowledge: Knowledge, guidance: Guidance) -> Guidance:
        """Add synthetic samples of all tasks so far."""
        if self.strength == 0.0:
            return guidance
        assert knowledge.server is not None and knowledge.classes_met is not None
        made = self._synthesise(knowledge.server, guidance.shared, knowledge.classes_met)
        return replace(guidance, shared={**guidance.shared, **made})

    def _synthesise(
        self, server: ServerModels, averaged: Arrays, classes: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Return samples `[M, *input_shape]`, soft labels `[M, K]` and their outputs `[K]`."""
        from fedkd.fusion.streams.synthesis import synthesise

        architecture = server.architecture_of(0)
        weights = unpack(averaged, server.initial_weights(architecture))
        made = synthesise(
            server.network(architecture, weights),
            server.network(architecture),
            server.input_shape,
            classes,
            self,
            server.seed("synthesis"),
        )
        return {
            SYNTHETIC: made.samples.numpy(),
            SOFT_LABELS: softmax(made.logits.numpy(), self.temperature).astype(np.float32),
            CLASSES: np.array(classes, dtype=np.int64),
        }

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load the average, and store its samples, if any."""
        super().apply(client, guidance)
        if SYNTHETIC in guidance:
            client.memory |= {name: np.array(guidance[name]) for name in (SYNTHETIC, SOFT_LABELS, CLASSES)}

    def rehearsal(self, client: ClientView) -> Rehearsal | None:
        """Return the samples of the last task's end; None in the first task."""
        if SYNTHETIC not in client.memory:
            return None
        classes = client.memory[CLASSES]

        def loss(logits: Tensor, soft_labels: Tensor) -> Tensor:
            return self.rehearsal_loss(logits, soft_labels, classes)

        return Rehearsal(client.memory[SYNTHETIC], client.memory[SOFT_LABELS], loss)

    def rehearsal_loss(self, logits: Tensor, soft_labels: Tensor, classes: np.ndarray) -> Tensor:
        """Return ``λ · T² · mean_i KL(t_i ‖ softmax(z_i / T))`` of logits `[B, C]` and t `[B, K]`."""
        import torch

        from fedkd.training import kd_kl

        met = torch.from_numpy(classes).to(logits.device)
        if self.distil == "met":
            return self.strength * kd_kl(logits[:, met], soft_labels, self.temperature)
        targets = torch.zeros_like(logits, dtype=soft_labels.dtype).index_copy_(1, met, soft_labels)
        return self.strength * kd_kl(logits, targets, self.temperature)
