"""Tokenizers of a table's text: words, bytes, byte pairs, or a vocabulary from a file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedkd.data.request import SourceRequest
from fedkd.errors import UserError, described, refuse_if
from fedkd.plugins import require_package

KEY = "data.args.tokenizer"
KINDS = ("words", "bytes", "bpe", "file")
PADDING, UNKNOWN = 0, 1
WORD = re.compile(r"\w+|[^\w\s]")


class Tokenizer(Protocol):
    """Turns text into ids > 0, the padding."""

    @property
    def size(self) -> int:
        """Number of ids, padding included."""

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text."""

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, as far as the ids tell."""


@dataclass(frozen=True)
class Words:
    """Words and punctuation in lower case: the padding 0, unknown words 1, then `words`."""

    words: tuple[str, ...]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}

    @property
    def size(self) -> int:
        return len(self.words) + UNKNOWN + 1

    def ids(self, text: str) -> list[int]:
        return [self._numbers.get(word, UNKNOWN) for word in words_of(text)]

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i - 2] if i > UNKNOWN else "?" for i in ids if i != PADDING)


class Bytes:
    """The bytes of UTF-8, each plus 1."""

    size = 257

    def ids(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def text(self, ids: Sequence[int]) -> str:
        return bytes(i - 1 for i in ids if i != PADDING).decode(errors="replace")


class Library:
    """A tokenizer of the package `tokenizers`; ids move up by 1 unless its id 0 is padding."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        first = inner.id_to_token(PADDING) or ""
        self._shift = 0 if first.strip("[]<>|").lower() == "pad" else 1
        inner.no_padding()
        inner.no_truncation()

    @property
    def size(self) -> int:
        return int(self._inner.get_vocab_size()) + self._shift

    def ids(self, text: str) -> list[int]:
        return [number + self._shift for number in self._inner.encode(text).ids]

    def text(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode([number - self._shift for number in ids if number != PADDING]))


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case."""
    return WORD.findall(text.lower())


def token_ids(
    texts: Sequence[str],
    train: np.ndarray,
    labels: np.ndarray,
    request: SourceRequest,
    told: str,
    owners: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Return ids [n, length] int64 of texts and the size of the vocabulary, by `data.args.tokenizer`.

    A vocabulary is learned from the `train` texts that the clients do not own, the held-out transfer set;
    with `learn_from = "train"` from all of them. `labels` and `owners` are those of the texts. `told`
    begins messages.
    """
    args = _settings(request)

    def to_learn() -> Iterator[str]:
        own = np.flatnonzero(train)
        if args["learn_from"] == "transfer":
            known = None if owners is None else owners[own]
            held_out = request.held_out and request.held_out(labels[own], known)
            reason = (
                "no transfer set is held out to learn the vocabulary from; set learn_from = 'train', which"
            )
            reason += " shows clients' words to all, or kind = 'bytes' or 'file'"
            refuse_if(held_out is None, reason, f"{KEY}.learn_from")
            own = own[held_out]
        request.progress(f"learning a vocabulary from {len(own):,} texts")
        return (texts[row] for row in own.tolist())

    kind, size = args["kind"], args["vocabulary"]
    tokenizer: Tokenizer
    if kind == "words":
        tokenizer = learn_words(to_learn(), size)
    elif kind == "bytes":
        tokenizer = Bytes()
    elif kind == "bpe":
        tokenizer = learn_byte_pairs(to_learn(), size)
    else:
        tokenizer = read_tokenizer(request.path(args["path"]))
    x = np.zeros((len(texts), args["length"]), np.int64)
    longer = 0
    for row, text in enumerate(texts):
        ids = tokenizer.ids(text)
        longer += len(ids) > x.shape[1]
        ids = ids[: x.shape[1]]
        x[row, : len(ids)] = ids
    unknown = (
        "" if kind in ("bytes", "bpe") else f", {(x == UNKNOWN).sum() / max((x > 0).sum(), 1):.1%} unknown"
    )
    cut = f"{longer / len(texts):.1%} of texts cut at {x.shape[1]} tokens"
    request.progress(f"{told}: {tokenizer.size:,} token ids{unknown}; {cut}")
    return x, tokenizer.size


def learn_words(texts: Iterator[str], vocabulary: int) -> Words:
    """Return a tokenizer of the most frequent words; of equally frequent ones the first in the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return Words(tuple(word for word, _ in frequent[: vocabulary - UNKNOWN - 1]))


def learn_byte_pairs(texts: Iterator[str], vocabulary: int) -> Library:
    """Return a tokenizer of byte pairs (Sennrich et al., ACL 2016; over bytes: Radford et al., 2019)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizers = require_package("tokenizers", 'tokenizer kind "bpe"', "text")
    level = tokenizers.pre_tokenizers.ByteLevel
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer, inner.decoder = level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["[PAD]"],
        initial_alphabet=sorted(level.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Library(inner)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `.json` of the package `tokenizers`, or a text file with one word a line."""
    try:
        if path.suffix == ".json":
            tokenizers = require_package("tokenizers", "a tokenizer from a .json file", "text")
            text = path.read_text(encoding="utf-8")
            try:
                return Library(tokenizers.Tokenizer.from_str(text))
            except Exception as error:  # the package raises no class of its own
                raise UserError(f"{path} is no tokenizer: {described(error)}", key=f"{KEY}.path") from error
        words = [line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {described(error)}", key=f"{KEY}.path") from error
    listed = tuple(dict.fromkeys(filter(None, words)))
    refuse_if(not listed, f"{path} lists no words, one a line", f"{KEY}.path")
    return Words(listed)


def _settings(request: SourceRequest) -> dict[str, Any]:
    given: Mapping[str, Any] = request.args.get("tokenizer", {})
    defaults: dict[str, Any] = {"kind": "words", "vocabulary": 8000, "length": 128, "learn_from": "transfer"}
    try:
        args = replace(request, name="tokenizer", args=given).arguments(**defaults, path=str)
    except UserError as error:
        told = (error.key or "").replace("data.args", KEY)
        raise UserError(error.message, key=told) from error
    for key, choices in (("kind", KINDS), ("learn_from", ("transfer", "train"))):
        told = f"must be one of {', '.join(choices)}, got '{args[key]}'"
        refuse_if(args[key] not in choices, told, f"{KEY}.{key}")
    least = 258 if args["kind"] == "bpe" else 3
    told = f"must be ≥ {least}, got {args['vocabulary']}"
    refuse_if(args["vocabulary"] < least, told, f"{KEY}.vocabulary")
    refuse_if(not 1 <= args["length"] <= 100_000, f"must be ≥ 1, got {args['length']}", f"{KEY}.length")
    of_file = args["kind"] == "file"
    told = 'is needed with kind = "file"' if of_file else 'needs kind = "file"'
    refuse_if(of_file != (args["path"] is not None), told, f"{KEY}.path")
    return args
