"""What nobody means: values, texts and bytes that a careful program has to refuse, or to bear."""

from __future__ import annotations

from typing import Any

import numpy as np

INTEGERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    255,
    2**31,
    2**32,
    10**9,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(10**18),
)
FLOATS = (0.0, -0.0, 1.0, 0.5, -1.5, 1e-308, 5e-324, 1e308, -1e308, 1e38, 1e-45, 1e9, 0.999999, 2.0)
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "\n",
    "a\nb",
    "none",
    "true",
    "mlp",
    "knfu",
    "..",
    "/",
    "/dev/null",
    "/dev/zero",
    "/nowhere/at/all",
    "~",
    "~nosuchuser/x",
    "\0",
    "a\0b",
    "x" * 300,
    "x" * 5000,
    "ä" * 200,
    "\u202e\u200b\ufeff",
    "😀" * 40,
    "\x1b[31mred",
    "%s%n{0}$HOME",
    "module:",
    ":Name",
    "os:getcwd",
    "os:nothing",
    "nowhere.at.all:Name",
    "json.decoder:JSONDecoder",
    "a:b:c",
    "flwr:FedAvg",
    "flwr:Nothing",
    "flwr:",
    "=1+1",
    "'",
    '"""',
    "[",
    "999999999999999999999999",
    "1e400",
)


def scalar(rng: np.random.Generator) -> Any:
    """Return a value without structure."""
    pools: tuple[tuple[Any, ...], ...] = (INTEGERS, FLOATS, NO_NUMBERS, TEXTS, (True, False))
    pool = pools[rng.choice(len(pools), p=(0.3, 0.25, 0.08, 0.3, 0.07))]
    return pool[rng.integers(len(pool))]


def value(rng: np.random.Generator, depth: int = 0) -> Any:
    """Return a value that TOML can say, with or without structure."""
    roll = rng.random()
    if roll < 0.75 or depth > 2:
        return scalar(rng)
    if roll < 0.86:
        return [value(rng, depth + 1) for _ in range(rng.integers(4))]
    if roll < 0.97:
        return {name(rng): value(rng, depth + 1) for _ in range(rng.integers(4))}
    return deep(rng)


def deep(rng: np.random.Generator) -> Any:
    """Return lists or tables far within each other, as deep as a writer of TOML bears."""
    found: Any = 1
    for _ in range(int(rng.choice([10, 60, 70, 150]))):
        found = [found] if rng.random() < 0.5 else {"a": found}
    return found


def name(rng: np.random.Generator) -> str:
    """Return something for a key."""
    return str(
        rng.choice(["a", "path", "size", "alpha", "", "0", "a.b", "ключ", "x" * 400, "__class__", "self"])
    )


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return content after an accident: a bit turned, a piece lost, doubled, zeroed or replaced."""
    kind = rng.integers(8)
    place = int(rng.integers(len(content) + 1))
    if kind == 0 and content:
        place = min(place, len(content) - 1)
        return content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return b""
    if kind == 3:
        return content[:place] + rng.bytes(int(rng.integers(1, 20))) + content[place:]
    if kind == 4:
        return content + content[place:]
    if kind == 5:
        return content[:place] + bytes(len(content) - place)
    if kind == 6:
        return b"[" * 100_000
    return rng.bytes(int(rng.integers(200)))
