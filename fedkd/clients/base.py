"""One participant of the federation: a shard of data, a model, a state.

Nothing here knows of messages or engines; `fedkd.federation.client_app` puts a client behind Flower. How a
model trains and predicts is its kind's business (`model_kind`): `torch_client`, `stream_client`,
`estimator_client`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np

from fedkd.clients.faults import Poison
from fedkd.clients.guidance_effect import SPLITS, GuidanceEffect, Split
from fedkd.clients.model_kind import ModelKind
from fedkd.clients.own_prior import leaning, log_shares, smallest_kappa
from fedkd.clients.own_samples import OwnSamples, keep_apart, share_held_out, train_on_all
from fedkd.clients.rehearsal import LastGuidance
from fedkd.clients.upload import leave, upload_stages
from fedkd.clients.view import RoundView
from fedkd.data.federated import ClientData
from fedkd.fusion.given import Received, check_arrays
from fedkd.fusion.kinds import Kind
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.strategy import answers_otherwise
from fedkd.fusion.views import Arrays, FitSummary
from fedkd.namespaces import below, under
from fedkd.plan.plan import Plan
from fedkd.plan.poisoned import round_half_up
from fedkd.randomness import derive_seed, numpy_generator
from fedkd.training.chance import Hits
from fedkd.training.device import torch_threads
from fedkd.training.evaluate import Score, score
from fedkd.training.executor import Executor, LoopExecutor, Training, complete_alone

MODEL = "model/"
KEPT = "kept/"
REHEARSED = "rehearsed/"
MEMORY = "memory/"
APPLIED_ROUND = "applied_round"
EFFECT = "effect/"

T = TypeVar("T")


class Client(ModelKind):
    """Trains, uploads what it knows, learns from guidance, evaluates.

    Every draw derives from (seed, purpose, client, round), so the whole state of a client between two
    messages is its model, what its strategy and its optimiser keep, and the round of the last guidance it
    applied.

    What trains is a coroutine of jobs (see `fedkd.training.executor`): whoever has several clients at hand
    may run theirs together.

    Args:
        plan: What to simulate.
        index: Client index, 0-based.
        data: The client's samples, the transfer set and the common test set.
        poison: What makes the client a poisoned one; None: nothing does.
    """

    def __init__(self, plan: Plan, index: int, data: ClientData, poison: Poison | None = None) -> None:
        self.index = index
        self.data = data
        self.applied_round = -1  # a strategy's first words are the guidance of round 0
        self.memory: dict[str, np.ndarray] = {}
        self.last_fit: FitSummary | None = None
        self.last_hits: Hits | None = None  # of the last training on own samples
        self.executor: Executor = LoopExecutor()
        self.evaluated = True  # else nobody asks what its accuracy was before guidance
        self.effect = GuidanceEffect()
        self._plan = plan
        self._scenario = plan.scenario
        self._strategy = plan.strategy
        self._kept: dict[str, np.ndarray] = {}  # guidance that shapes local training
        self._kappa = 0.0  # of the last answers
        self._last_guidance: LastGuidance | None = None  # None: there has been none, or it is not rehearsed
        self._poison = poison
        self._stages = upload_stages(self._scenario.fusion, poison)

    @property
    def strategy_name(self) -> str:
        """Name of the strategy."""
        return self._strategy.name

    @property
    def teaches_locally(self) -> bool:
        """Whether guidance has its effect in the next local training, not when it arrives."""
        return self._strategy.capabilities.uses_local_loss

    @property
    def guidance_changes_predictions(self) -> bool:
        """Whether guidance changes what the client predicts as soon as it arrives."""
        return not self.teaches_locally or answers_otherwise(self._strategy)

    @property
    def rounds(self) -> int:
        """Rounds of the whole run."""
        return self._scenario.rounds

    @property
    def workplace(self) -> object:
        """What only one client can work in at a time: itself, unless clients of the process share a model."""
        return self

    @property
    def batch_size(self) -> int:
        """Samples of a batch of local training."""
        return self._scenario.training.batch_size

    def own_rows(self, round: int) -> np.ndarray:
        """Return which of its training samples a round's local training is about: indices, ascending."""
        return self._own_samples().trained_on

    def generator_of(self, purpose: str, round: int) -> np.random.Generator:
        """Return the client's generator of a purpose in a round."""
        return self._generator(purpose, round)

    @property
    def num_train_samples(self) -> int:
        """Number of the client's training samples, those that it keeps apart for early stopping included."""
        return len(self.data.train_y)

    def complete(self, training: Training[T]) -> T:
        """Bring a training of this client to its end, and return what it returned."""
        return complete_alone(training, self.executor)

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Do the client's arithmetic on so many threads while the block runs."""
        return torch_threads(number)

    # Knowledge and guidance ---------------------------------------------------------------------------

    def upload(self, round: int, request: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return what leaves the client after training, past all stages.

        Args:
            round: Round, 1-based.
            request: Indices of the transfer samples that the server asked for; None: all of them.

        Raises:
            TrainingDiverged: The model predicts nothing any more.
        """
        if self._strategy.capabilities.sends == "nothing":
            return {}
        view = RoundView(self, round, request)
        arrays = self._strategy.upload(view)
        check_arrays(arrays, f"what `upload` of '{self._scenario.fusion.strategy}' returned")
        self.last_fit = None  # the weights it began with are of no further use
        return self.sent(arrays, self._strategy.kinds_of(arrays), round)

    def sent(
        self, arrays: dict[str, np.ndarray], kinds: Mapping[str, Kind], round: int
    ) -> dict[str, np.ndarray]:
        """Return what becomes of arrays on their way out of the client: the client's half of all stages.

        Args:
            arrays: By name.
            kinds: What each of them is.
            round: Of the message.
        """
        return leave(self._stages, arrays, kinds, lambda purpose: self._generator(purpose, round))

    def learn(self, guidance: Arrays, round: int) -> Training[None]:
        """Apply guidance; that of a round already applied is ignored.

        Args:
            guidance: What the strategy fused for this client.
            round: Round the guidance belongs to.
        """
        if round <= self.applied_round:
            return
        yield from self.set_out()
        self.applied_round = round
        if self.teaches_locally:
            self._kept = Received(guidance)
            return
        guidance = Received(guidance)
        self.effect.follow(guidance)
        view = RoundView(self, round)
        found = self._strategy.apply(view, guidance)
        if found is not None:
            yield from self.be_taught(*found, round)

    def be_taught(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> Training[None]:
        """Distil targets, and keep them if they are to be rehearsed.

        Args:
            targets: What is wanted of transfer samples, `[K, C]`.
            samples: Their indices `[K]`; None: all.
            round: In which they were fused.
        """
        if self._plan.recipe.rehearse > 0.0:
            self._last_guidance = LastGuidance(targets, samples, round)
        yield from self.distil(targets, samples, round)

    # Evaluation ---------------------------------------------------------------------------------------

    def evaluate(self, split: Split) -> Score:
        """Evaluate on the client's own test split (`local`) or on the common test set (`global`)."""
        x, y = self._tests(split)
        return score(self.answer(x) if len(y) else np.empty((0, self.data.classes)), y)

    def _tests(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        data = self.data
        return (data.test_x, data.test_y) if split == "local" else (data.global_x, data.global_y)

    def answer(self, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` that evaluations take for the client's, of its present task."""
        logits, self._kappa = self.leaning(self._answer, x)
        return logits

    def leaning(self, answer: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
        """Return logits `[n, C]` that lean to own classes, and κ: the scenario's, or what suits the client.

        Args:
            answer: From samples to a model's logits.
            x: The samples.
        """
        kappa = self._scenario.fusion.own_prior
        if kappa == 0.0:
            return answer(x), 0.0
        log_prior = log_shares(self.training_labels(), self.data.classes)
        if kappa == "auto":
            kept, labels = self.kept_apart()
            kappa = smallest_kappa(answer(kept), labels, log_prior) if len(labels) else 0.0
        return leaning(answer(x), kappa, log_prior), kappa

    def kept_apart(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples `[k, …]` and labels `[k]` that the client chooses by and never trains on."""
        rows = self._own_samples().kept_apart
        return self.data.train_x[rows], self.training_labels()[rows]

    def choices(self) -> dict[str, float]:
        """Return what the client has chosen for itself, by metric name, as of the last evaluation."""
        own = {"own_prior": self._kappa} if self._scenario.fusion.own_prior == "auto" else {}
        return own | dict(self._strategy.client_metrics(RoundView(self, self.applied_round)))

    def _answer(self, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` that evaluations take for the client's."""
        if self._answers_by_guidance:
            return objective_of(self._strategy).infer(self.features(x), self._kept)
        return self.predict(x)

    @property
    def _answers_by_guidance(self) -> bool:
        return bool(self._kept) and self._strategy.capabilities.infers_from_guidance

    def lent(self, lanes: int) -> AbstractContextManager[None]:
        """Have so many threads predict while the block runs, as the processors of others are idle."""
        return nullcontext()

    def at_one_moment(self) -> AbstractContextManager[None]:
        """Have what is evaluated several times while the block runs, without training, predicted once."""
        return nullcontext()

    def evaluate_each(self, split: Split, answered: Score) -> dict[str, Score]:
        """Evaluate each of the models that its strategy tells apart; by default there is but one.

        Args:
            split: As for `evaluate`.
            answered: The score there of the one that answers.
        """
        return {}

    def evaluate_fused(self, split: Split, round: int) -> Score:
        """Evaluate what the fusion of a round has led to."""
        return self.evaluate(split)

    def remember_trained(self, round: int, *, changes: bool = True) -> None:
        """Take down that guidance comes in this round, and how the client does without it.

        Args:
            round: That of the message that brings it.
            changes: Whether it changes the model at once: else there is nothing to measure.
        """
        scores = {split: self.evaluate(split) for split in SPLITS} if changes else None
        self.effect.begin(round, scores)
        for split, found in (scores or {}).items():
            for name, own in self.evaluate_each(split, found).items():
                self.effect.begin_model(name, split, own.accuracy)

    def fidelity(self, round: int, after: Score) -> dict[str, float]:
        """Return how far the client now follows its guidance (see `GuidanceEffect.fidelity`).

        Args:
            round: 1-based.
            after: Its score on the common test set now.
        """
        return self.effect.fidelity(round, after.correct, self._follow)

    def _follow(self, guidance: Arrays) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the client's logits where guidance has targets, and the probabilities asked for."""
        found = self._strategy.targets_of(RoundView(self, self.applied_round), guidance)
        if found is None:
            return None
        targets, samples = found
        logits = self.predict(self.data.transfer_x[slice(None) if samples is None else samples])
        return logits, self._strategy.probabilities(targets)

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = {APPLIED_ROUND: np.array(self.applied_round, dtype=np.int64)}
        arrays |= under(EFFECT, self.effect.state())
        arrays |= under(MODEL, self.model_state()) | under(KEPT, self._kept)
        if self._last_guidance is not None:
            arrays |= under(REHEARSED, self._last_guidance.state())
        return arrays | under(MEMORY, self.memory)

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        self.applied_round = int(arrays[APPLIED_ROUND])
        self.effect.restore(below(EFFECT, arrays))
        self._kept = Received(below(KEPT, arrays))
        self._last_guidance = LastGuidance.restored(below(REHEARSED, arrays))
        self.memory.clear()
        self.memory.update(below(MEMORY, arrays))
        self.restore_model(below(MODEL, arrays))

    # For the kinds of model --------------------------------------------------------------------------

    def _samples_of_round(self, round: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples and labels that a round's local training is about."""
        x, y, rows = self.data.train_x, self.training_labels(), self.own_rows(round)
        return (x, y) if len(rows) == len(y) else (x[rows], y[rows])

    def _rows_of_training(self, round: int) -> np.ndarray:
        """Return those of the samples that `_training_work` gives: fewer of them for a straggler."""
        rows = self.own_rows(round)
        kept = self._straggle(round, [len(rows)])
        return rows if kept is None else rows[kept[0]]

    def _training_work(self, epochs: int, round: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the samples, labels and epochs of a round's local training: less for a straggler."""
        x, y = self._samples_of_round(round)
        kept = self._straggle(round, [len(y)])
        return (x, y, epochs) if kept is None else (x[kept[0]], y[kept[0]], 1)

    def _straggle(self, round: int, sizes: Sequence[int]) -> list[np.ndarray] | None:
        """Draw what a straggler trains on of sets of so many samples, indices ascending; None: it is none."""
        slow = self._scenario.faults
        if slow.stragglers == 0.0:
            return None
        draw = self._generator("straggler", round)
        if draw.random() >= slow.stragglers:
            return None
        return [
            np.sort(draw.permutation(size)[: round_half_up(slow.straggler_work * size)]) for size in sizes
        ]

    def training_labels(self) -> np.ndarray:
        """Return the labels the client learns from: flipped ones for some of the poisoned."""
        return self._labels_of(self.data)

    def _own_samples(self) -> OwnSamples:
        """Return which of the client's training samples it trains on."""
        return self._own_samples_of(self.data)

    def _own_samples_of(self, data: ClientData, task: int | None = None) -> OwnSamples:
        share = self._share_kept_apart
        if share is None:
            return train_on_all(len(data.train_y))
        return keep_apart(data.train_y, share, seed=self._scenario.seed, client=self.index, task=task)

    @property
    def _share_kept_apart(self) -> float | None:
        """Share of the training samples that is kept apart; None: the client trains on all."""
        return share_held_out(self._plan)

    def _labels_of(self, data: ClientData) -> np.ndarray:
        return data.train_y if self._poison is None else self._poison.labels(data.train_y, data.classes)

    def _seed(self, purpose: str, round: int) -> int:
        return derive_seed(self._scenario.seed, purpose, client=self.index, round=round)

    def _generator(self, purpose: str, round: int) -> np.random.Generator:
        return numpy_generator(self._scenario.seed, purpose, client=self.index, round=round)
