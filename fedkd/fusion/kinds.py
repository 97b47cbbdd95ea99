"""Kinds of uploaded arrays, for servers and attacks."""

from enum import Enum


class Kind(Enum):
    """Kind of an uploaded array. Its value describes it, as "What leaves a client" in the docs shows."""

    TRANSFER_LOGITS = "One row per requested transfer sample, `[M, C]`; they become `Knowledge.logits`."
    SAMPLE_LOGITS = "One row per sample of the client's choice, `[K, C]`."
    LABEL_LOGITS = "One row per label, `[C, C]`."
    LABEL_COUNTS = "Training samples of each label, `[C]`; they become `Knowledge.label_counts`."
    FEATURES = "Penultimate features, or means of them; sketches of what layers receive."
    WEIGHTS = "Parameters or statistics of a model, or steps and corrections of them."
    MASKS = "Which weights something is about, a bit each, packed into bytes."
    COUNTERS = "A model's buffers that are not real numbers."
    MASS = "What a client's weights have to be divided by, `[1]` (push-sum)."
    SAMPLE_LABELS = "The true class of each of a client's own samples, `[S]`."
    VOTES = "One class per requested transfer sample, `[M]`."
    SAMPLE_CLASSES = "The likeliest classes of each of some samples, `[K, k]`."
    SHARES = "How likely such classes are, in whole steps of 1/255, `[K, k]` uint8."
    SCORES = "How well the client does on own samples that it keeps apart."
    INDICES = "Which samples other arrays are about."
    UNTRAINED = "Predictions of a model before any training: a function of its random weights alone."
    CONSTANT = "The same from every client, like the number of classes."
    OTHER = "None of these; what a strategy does not declare."

    @property
    def is_logits_of_samples(self) -> bool:
        """True if a row is the client's prediction for one sample, which attacks can forge."""
        return self in (Kind.TRANSFER_LOGITS, Kind.SAMPLE_LOGITS)

    @property
    def is_prediction(self) -> bool:
        """True if these are logits, whose precision a scenario chooses."""
        return self.is_logits_of_samples or self is Kind.LABEL_LOGITS

    @property
    def is_stacked(self) -> bool:
        """True if `Knowledge` holds all clients' arrays as one, outside `extra`."""
        return self in (Kind.TRANSFER_LOGITS, Kind.LABEL_COUNTS)

    @property
    def is_honest(self) -> bool:
        """True if even a poisoned client sends it unchanged, so that its upload looks valid."""
        return self in (Kind.LABEL_COUNTS, Kind.COUNTERS, Kind.MASS, Kind.INDICES, Kind.CONSTANT)
