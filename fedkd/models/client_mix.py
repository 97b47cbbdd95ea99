"""The assignment of models to clients."""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Any

from fedkd.scenario import ClientGroup, Scenario


def client_models(scenario: Scenario) -> list[ClientGroup]:
    """Return the group of every client, in proportion to shares and spread evenly."""
    groups, clients = scenario.clients, scenario.data.clients
    counts = apportion(clients, [group.share for group in groups])
    # The j-th of k clients of a group belongs in the middle of the j-th of k equal parts.
    # Their places are counted in units of clients / (2 · whole), which makes them integers.
    whole = lcm(*filter(None, counts))
    wishes = sorted(
        ((2 * j + 1) * (whole // count), index) for index, count in enumerate(counts) for j in range(count)
    )
    return [groups[index] for _, index in wishes]


def architecture_names(groups: Sequence[ClientGroup]) -> list[str]:
    """Return every group's architecture name, with the arguments that differ between equal names."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    distinct = {id(group): group for group in groups}
    for group in distinct.values():
        kinds.setdefault(group.model, [])
        if _arguments(group) not in kinds[group.model]:
            kinds[group.model].append(_arguments(group))

    def name(group: ClientGroup) -> str:
        mine = _arguments(group)
        others = [args for args in kinds[group.model] if args != mine]
        own = {key: value for key, value in mine.items() if any(o.get(key) != value for o in others)}
        told = ", ".join(f"{key}={value}" for key, value in own.items())
        return f"{group.model} ({told})" if own else group.model

    names = {key: name(group) for key, group in distinct.items()}
    return [names[id(group)] for group in groups]


def _arguments(group: ClientGroup) -> dict[str, Any]:
    """Return a model's arguments, with those of its adapters."""
    return group.args | ({} if group.adapter is None else group.adapter.model_dump())


def apportion(clients: int, shares: list[float]) -> list[int]:
    """Return the number of clients per share by largest remainders, at least one if possible."""
    # As decimals, exactly as written: 0.1 + 0.2 is 0.3 here.
    exact = [Fraction(str(share)) for share in shares]
    quotas = [clients * share / sum(exact) for share in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda index: (counts[index] - quotas[index], index))
    for index in by_remainder[: clients - sum(counts)]:
        counts[index] += 1
    while clients >= len(shares) and 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts
