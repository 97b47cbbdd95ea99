"""Message: clients ask about uncertain samples, and the best client answers in four bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, NamedTuple
from zlib import crc32

import numpy as np
from pydantic import Field

from fedkd.errors import TrainingDiverged
from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge, softmax
from fedkd.fusion.distillation.soft_labels import SoftLabels
from fedkd.fusion.predictions import Answers, answers_of, predictions, two_likeliest
from fedkd.fusion.views import Arrays, ClientView, Distillation, Network
from fedkd.plugins import hyperparameters

ASKED, BETWEEN, CLASSES, SHARES, ABOUT = "asked", "between", "classes", "shares", "about"
QUESTIONS, ANSWERED = "questions", "answered"


@hyperparameters
class Message(SoftLabels):
    """Ask about the two classes in doubt, and distil the best client's answer.

    ::

        question of n: the κM samples where its two likeliest classes are nearest to each other, and these two
        answer of m:   for every sample with a question in the round before, m's two likeliest
                       classes with their probabilities, in steps of 1/255                  4 bytes a sample
        q_m[i]       = those two probabilities; the rest to 1 is spread evenly over the other classes
        p_m          = mean of q_m over these samples                                 estimated classes of m
        teacher of n = argmax over m ≠ n of max over the question's two classes c of p_m[c] q_m[i, c]
        loss         = cross entropy to the teacher's q_m[i], on the samples that n asked about

    Answers come a round after the question, so the first round teaches nothing. A client sends a bit per
    transfer sample, two bytes per own question and four bytes per sample with a question. It receives two
    bits per transfer sample and four bytes per question. Above 256 classes, each class takes a byte more.
    With ten classes the logits of `knfu` are 40 bytes per sample each way.
    """

    name: ClassVar[str] = "message"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="questions, and answers of two classes",
        kinds={
            ASKED: Kind.INDICES,
            BETWEEN: Kind.SAMPLE_CLASSES,
            CLASSES: Kind.SAMPLE_CLASSES,
            SHARES: Kind.SHARES,
            ABOUT: Kind.CONSTANT,
        },
        shapes={ASKED: "Y", BETWEEN: "q 2<C", CLASSES: "r 2<C", SHARES: "r 2", ABOUT: "2"},
        receives={QUESTIONS: "Y", ANSWERED: "Y", CLASSES: "q 2<C", SHARES: "q 2"},
        guides="each",
        upload_changes=True,
        requires_sync="has clients answer questions of the previous round",
        reach="every client: the questions; clients that asked in the round before: the answers",
    )
    paper: ClassVar[str] = (
        "after Wang et al., Talking Models: Distill Pre-trained Knowledge to Downstream Models via"
        " Interactive Communication, arXiv 2310.03188, 2023"
    )

    questions: Annotated[float, Field(ge=0, le=1)] = 0.2
    """κ: share of the transfer set that a client asks about each round. Bytes grow with all clients'
    questions: ten clients at 0.2 ask about most of it unless they are unsure about the same. 0 leaves every
    client alone."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return answers `classes` and `shares` `[R, 2]`, and the client's questions.

        Questions are `asked` `[⌈M/8⌉]`, a bit for each transfer sample, and the two classes `between` `[Q,
        2]`. `about` `[2]` is the number of classes and a checksum of the answered questions.
        """
        logits = client.logits()
        if np.isnan(logits).any():  # the sent arrays would hide it
            raise TrainingDiverged("predictions are not numbers (NaN); a lower training.lr may help")
        q = softmax(logits)
        questions = client.memory.get(QUESTIONS, _bits(np.empty(0, dtype=np.int64), len(q)))
        answers = answers_of(q[_members(questions, len(q))])
        asked = self._unsure(q)
        return {
            CLASSES: answers.classes,
            SHARES: answers.shares,
            ASKED: _bits(asked, len(q)),
            BETWEEN: two_likeliest(q[asked]).astype(answers.classes.dtype),
            ABOUT: np.array([q.shape[-1], crc32(questions.tobytes())], dtype=np.uint32),
        }

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        """Refuse a wrong number of questions or classes."""
        asked, between = np.unpackbits(upload[ASKED]), len(upload[BETWEEN])
        samples, classes = sizes.get("M", len(asked)), sizes.get("C", int(upload[ABOUT][0]))
        if asked[samples:].any():
            return f"array {ASKED} has bits of more than {samples} transfer samples"
        if asked.sum() != between:
            return f"array {BETWEEN} has {between} rows, must have {asked.sum()}: one a bit of {ASKED}"
        if "M" in sizes and between != self._number(samples):
            return f"array {BETWEEN} has {between} rows, must have {self._number(samples)}"
        if upload[ABOUT][0] != classes:
            return f"array {ABOUT} tells {upload[ABOUT][0]} classes, must tell {classes}"
        return None

    def _number(self, samples: int) -> int:
        """Return the number of questions Q."""
        return int(self.questions * samples + 0.5)

    def _unsure(self, q: np.ndarray) -> np.ndarray:
        """Return the samples of the smallest margins, ascending."""
        top = np.take_along_axis(q, two_likeliest(q), axis=-1)
        order = np.argsort(top[:, 0] - top[:, 1], kind="stable")
        return np.sort(order[: self._number(len(q))])

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Store the round's questions, and learn the answers to the client's own."""
        client.memory[QUESTIONS] = np.array(guidance[QUESTIONS])
        return self.targets_of(client, guidance)

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Return predictions `[K, C]` by the answers, and their samples `[K]`; None without answers."""
        if ANSWERED not in guidance:
            return None
        told = predictions(Answers(guidance[CLASSES], guidance[SHARES]), client.classes)
        return told.astype(np.float32), _members(guidance[ANSWERED])

    def taught_samples(self, guidance: Arrays) -> int:
        return len(guidance[CLASSES]) if ANSWERED in guidance else 0

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each student's answers, all `questions` of the round, and the teachers' shares."""
        extra, clients = knowledge.payload, knowledge.clients
        asked = np.stack(extra[ASKED])
        questions = np.bitwise_or.reduce(asked, axis=0)
        told: dict[int, Arrays] = {}
        taught = np.zeros((len(clients), len(clients)))
        answers = _Heard.of(extra, memory)
        if answers is not None:
            students = zip(memory["clients"].tolist(), memory[ASKED], memory[BETWEEN], strict=True)
            for student, bits, between in students:
                own = clients.index(student) if student in clients else None
                found = answers.to(_members(bits), between, own)
                if found is None:
                    continue
                teachers, answer = found
                told[student] = {ANSWERED: bits, CLASSES: answer.classes, SHARES: answer.shares}
                if own is not None:
                    taught[own] = np.bincount(teachers, minlength=len(clients)) / len(teachers)
        untaught = taught.sum(axis=1) == 0
        kept = {
            "clients": np.array(clients, dtype=np.int64),
            ASKED: asked,
            BETWEEN: np.stack(extra[BETWEEN]),
            QUESTIONS: questions,
        }
        return Guidance(
            targets=None,
            weights=taught + np.diag(untaught.astype(float)) if told else None,
            memory=kept,
            shared={QUESTIONS: questions},
            personal=[told.get(client, {}) for client in clients],
            absent={student: own for student, own in told.items() if student not in clients},
            for_absent={},
        )


class _Heard(NamedTuple):
    """Answers of clients `[A]` about samples `[R]`; the score `[A, R, C]` is p_m q_m."""

    teachers: np.ndarray
    answers: Answers
    score: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(
        cls, uploads: Mapping[str, Sequence[np.ndarray]], memory: Mapping[str, np.ndarray]
    ) -> _Heard | None:
        """Return the answers to the questions of the round before; None without any."""
        if not memory or not memory[QUESTIONS].any():
            return None
        of_these, samples = crc32(memory[QUESTIONS].tobytes()), _members(memory[QUESTIONS])
        teachers = [
            m
            for m, about in enumerate(uploads[ABOUT])
            if int(about[1]) == of_these and len(uploads[CLASSES][m]) == len(samples)
        ]
        if not teachers:
            return None
        answers = [Answers(uploads[CLASSES][m], uploads[SHARES][m]) for m in teachers]
        said = np.stack([predictions(own, int(uploads[ABOUT][0][0])) for own in answers])
        return cls(
            np.array(teachers),
            Answers(*(np.stack(parts) for parts in zip(*answers, strict=True))),
            said * said.mean(axis=1, keepdims=True),
            samples,
        )

    def to(
        self, asked: np.ndarray, between: np.ndarray, own: int | None
    ) -> tuple[np.ndarray, Answers] | None:
        """Return teachers `[Q]` of `asked` samples `[Q]` between two classes `[Q, 2]`, and their answers.

        None without any. `own` is the student's row; None: it is absent.
        """
        others = np.flatnonzero(self.teachers != own)
        if not len(others) or not len(asked):
            return None
        rows = np.searchsorted(self.samples, asked)
        of_pairs = self.score[others[:, None, None], rows[:, None], between.astype(np.int64)]
        best = others[of_pairs.max(axis=-1).argmax(axis=0)]
        answer = Answers(self.answers.classes[best, rows], self.answers.shares[best, rows])
        return self.teachers[best], answer


def _bits(members: np.ndarray, size: int) -> np.ndarray:
    """Return a packed bit for each of `size` samples, 1 for members."""
    bits = np.zeros(size, dtype=np.uint8)
    bits[members] = 1
    return np.packbits(bits)


def _members(bits: np.ndarray, size: int | None = None) -> np.ndarray:
    """Return the samples whose bits are set, ascending."""
    return np.flatnonzero(np.unpackbits(bits)[:size])
