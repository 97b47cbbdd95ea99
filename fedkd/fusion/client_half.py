"""What a client does for a strategy: what it sends, and how it learns from what it receives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fedkd.fusion.auxiliary import OWN, Auxiliaries
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.kinds import Kind
from fedkd.fusion.views import Arrays, ClientView, LocalLoss, LocalStep, Network, Phase, Rehearsal

if TYPE_CHECKING:
    from torch import Tensor, nn


class ClientHalf(ABC):
    """The half of a strategy that works on clients; what the server does with it all is the other half.

    A `FusionStrategy` is both. Where the server's half is somebody else's, this one stands alone.
    """

    if TYPE_CHECKING:  # a class says it once for all its instances, or each instance has its own

        @property
        def name(self) -> str:
            """Name in scenarios and reports."""

        @property
        def capabilities(self) -> Capabilities:
            """What the strategy needs and can."""

    else:
        capabilities = Capabilities()

    recordable: ClassVar[bool] = False
    """Whether `loss` computes the same from the same tensors at each call, and does nothing else. Then steps
    of distillation may be recorded and replayed. A class that overrides `loss` declares it anew."""
    paper: ClassVar[str] = ""
    """Where the strategy comes from; "after …" if it takes an idea of a paper and not its method."""
    source_note: ClassVar[str] = ""
    """How it differs from that paper in one line, or that none was found."""
    proximal_mu: float = 0.0
    """μ of a pull to the weights that local training begins with: it adds ``μ/2 · ‖w − w_received‖²`` to the
    loss. A hyper-parameter of this name turns it on."""
    server_model: str | None = None
    """Name of a model that the server trains, where it has one of its own; a hyper-parameter of this name,
    and `server_args` for its arguments, are tried out before a run."""
    server_args: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the server's model."""
    shared_model: str | None = None
    """Name of a small model that every client trains beside its own, where the strategy has such a one; a
    hyper-parameter of this name, and `shared_args` for its arguments."""
    shared_args: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of that model."""

    def for_clients(self, *, one_architecture: bool) -> Self:
        """Return the strategy with those defaults filled in that the clients' models decide.

        Args:
            one_architecture: Whether all clients have models of one.

        Raises:
            UserError: A hyper-parameter asks for what these models cannot do.
        """
        return self

    def auxiliaries(self) -> Auxiliaries:
        """Return the networks that every client has besides its model; by default none."""
        return {}

    @classmethod
    def source(cls) -> str:
        """Return where the strategy comes from and how it differs, for people; empty if it is fedkd's own."""
        return "; ".join(text for text in (cls.paper, cls.source_note) if text)

    @property
    def shared_arguments(self) -> dict[str, Any]:
        """What `shared_model` is built with."""
        return dict(self.shared_args)

    @property
    def has_auxiliaries(self) -> bool:
        """Whether clients have networks besides their models."""
        return type(self).auxiliaries is not ClientHalf.auxiliaries

    # What it sends ------------------------------------------------------------------------------------

    @abstractmethod
    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return what a client sends after local training."""

    def kinds_of(self, upload: Arrays) -> dict[str, Kind]:
        """Return what each array of an upload is."""
        return {name: self.capabilities.kinds.get(name, Kind.OTHER) for name in upload}

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        """Return why arrays that fit one by one do not fit each other; None: they do.

        The server refuses such an upload and names its client.

        Args:
            upload: Arrays that fit one by one.
            sizes: The letters of their shapes (see `fedkd.fusion.forms`), as far as the server knows them.
            network: Shapes of the network whose weights are sent; None: unknown, or no weights are sent.
        """
        return None

    def exchanges(self, weight: str) -> bool:
        """Return whether a weight of this name leaves the client, of a strategy that needs `weights`."""
        return True

    # What it learns -----------------------------------------------------------------------------------

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Learn from guidance: by default distil `targets` on the transfer set, minimising `loss`."""
        found = self.targets_of(client, guidance)
        if found is None:
            raise KeyError(f"'{self.name}' gave guidance without targets; its `apply` has to say what to do")
        client.distil(*found)

    def targets_of(self, client: ClientView, guidance: Arrays) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return what guidance just applied wants of which transfer samples; `fidelity` measures it.

        Returns:
            Targets `[K, C]` and the indices of their samples `[K]`, None: all; or None where guidance says
            nothing about transfer samples.
        """
        if "targets" not in guidance:
            return None
        return guidance["targets"], guidance.get("samples")

    def taught_samples(self, guidance: Arrays) -> int:
        """Return how many transfer samples guidance has a client learn in a pass, by the guidance alone.

        What simulated time counts; what a client tries out before is not among them.
        """
        return len(guidance["targets"]) if "targets" in guidance else 0

    def before_training(self, client: ClientView) -> None:  # noqa: B027
        """Get ready for the local training that now begins, with what guidance has left on the client."""

    def gradient_correction(self, client: ClientView) -> Arrays | None:
        """Return what is added to every gradient of the local training that now begins, by parameter name.

        It is added to the clipped gradient: the clipping is of what the data say.
        """
        return None

    def local_loss(self, guidance: Arrays) -> LocalLoss | None:
        """Return what kept guidance adds to the loss of local training, if the strategy `uses_local_loss`.

        Args:
            guidance: The client's last guidance.
        """
        return None

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep | None:
        """Return the whole loss of private batches in the local training that now begins.

        It takes the place of the cross entropy and of what `local_loss` would add. None: nothing does. Where
        training stops early, held-out samples are judged by their cross entropy all the same.

        Args:
            client: Its weights are those that training begins with.
            guidance: The client's last guidance if the strategy `uses_local_loss`; else, or if there is none
                yet, empty.
        """
        return None

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase] | None:
        """Return the phases of a local training, one after another; None: all weights in one.

        A phase begins with a fresh optimiser, unless the scenario has its state kept. Normalisation layers
        compute as in any training, and go on with their statistics, whatever is trained.

        Args:
            epochs: What the scenario asks for, ``training.local_epochs``.
            last: Whether it is the one after the last fusion (``finish = "trained"``).
        """
        return None

    def trained_epochs(self, epochs: int) -> int:
        """Return the epochs of a local training, all phases together, where a scenario asks for so many."""
        phases = self.phases(epochs, last=False)
        return epochs if phases is None else sum(phase.epochs for phase in phases)

    @property
    def trains_in_phases(self) -> bool:
        """Whether local training has phases of the strategy's own."""
        return type(self).phases is not ClientHalf.phases

    def rehearsal(self, client: ClientView) -> Rehearsal | None:
        """Return what is trained on along with private samples in the local training that now begins.

        In every step a batch as large as a private one is drawn of it. None: nothing.
        """
        return None

    @property
    def shapes_local_loss(self) -> bool:
        """Whether clients minimise more than the cross entropy of private samples in local training."""
        changed = type(self).rehearsal is not ClientHalf.rehearsal or self.steps_locally
        return self.capabilities.uses_local_loss or changed

    @property
    def steps_locally(self) -> bool:
        """Whether clients minimise a loss of the strategy's own in local training (`local_step`)."""
        return type(self).local_step is not ClientHalf.local_step

    @property
    def teaches_targets(self) -> bool:
        """Whether clients distil targets of transfer samples, so that they can rehearse them."""
        return not self.capabilities.uses_local_loss and type(self).loss is not ClientHalf.loss

    def infer(self, features: np.ndarray, guidance: Arrays) -> np.ndarray:
        """Return the logits `[n, C]` that an evaluation takes for the model's own.

        Every strategy has to define it whose guidance answers.

        Args:
            features: Penultimate features of the samples, `[n, F]`.
            guidance: The client's last guidance.

        Raises:
            NotImplementedError: The strategy does not define it.
        """
        raise NotImplementedError(f"'{self.name}' does not define `infer`, so it cannot answer")

    def predictor(self, client: ClientView) -> nn.Module | None:
        """Return the network that evaluations ask in the place of the client's model; None: they ask that.

        It maps samples `[B, *input_shape]` to logits `[B, C]`, on the device of the client's model, and is in
        evaluation mode while it is asked. Made of what there is when an evaluation begins: the client's
        networks, its `memory`. What is uploaded is the client's own model's all the same.
        """
        return None

    asked: ClassVar[tuple[str, ...]] = (OWN,)
    """The networks that an evaluation computes with: the client's model, and auxiliary ones by name."""

    answerers: ClassVar[tuple[str, ...]] = ()
    """Names of a client's models that evaluations measure each for itself, where it has several that could
    answer: `accuracy_NAME` and `accuracy_trained_NAME` beside the accuracies of the one that does."""

    @property
    def answers_with(self) -> str:
        """Which of the `answerers` it is that answers, as `predictor` says; empty where there are none."""
        return ""

    def answerer(self, client: ClientView, name: str) -> nn.Module:
        """Return one of the `answerers`; what holds for a `predictor` holds for it.

        Raises:
            NotImplementedError: The strategy does not define it.
        """
        raise NotImplementedError(f"'{self.name}' does not define `answerer`")

    @property
    def answers_otherwise(self) -> bool:
        """Whether evaluations may be answered by something else than the client's model."""
        return self.capabilities.infers_from_guidance or type(self).predictor is not ClientHalf.predictor

    def choices(self, client: ClientView) -> Mapping[str, float]:
        """Return what the client has chosen for itself, by metric name; every evaluation records it."""
        return {}

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return what a client minimises on a batch of the transfer set, a scalar.

        Every strategy has to define it whose clients distil.

        Args:
            student_logits: The client's own logits, `[B, C]`.
            targets: The same samples' rows of its guidance, `[B, C]`.

        Raises:
            NotImplementedError: The strategy does not define it.
        """
        raise NotImplementedError(f"'{self.name}' does not define `loss`, so its clients cannot distil")

    def probabilities(self, targets: np.ndarray) -> np.ndarray:
        """Return targets `[M, C]` as probabilities, for clients that do not learn by gradients.

        Override it where the targets of `fuse` are not probabilities.
        """
        return targets
