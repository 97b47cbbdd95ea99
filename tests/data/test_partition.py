from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data.partitions.from_file import read_partition_file
from fedkd.data.partitions.schemes import circle_mixes, draw_label_mixes, lift_to_floor, mix_counts, partition
from fedkd.errors import UserError
from fedkd.scenario.schema import Partition

DRAWN = ("iid", "dirichlet", "dirichlet-per-client", "circle", "shards", "quantity")


def balanced(samples: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.arange(samples) % classes)


def mixes_of(parts: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    classes = labels.max() + 1
    return np.array([np.bincount(labels[part], minlength=classes) / len(part) for part in parts])


def mean_total_variation(parts: list[np.ndarray], labels: np.ndarray) -> float:
    prior = np.bincount(labels) / len(labels)
    return float(np.abs(mixes_of(parts, labels) - prior).sum(axis=1).mean() / 2)


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(DRAWN),
    alpha=st.floats(1e-3, 1e3),
    clients=st.integers(1, 30),
    classes=st.integers(1, 12),
    floor=st.integers(1, 12),
    extra=st.integers(0, 500),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_every_scheme_gives_disjoint_parts_within_the_bounds(
    scheme, alpha, clients, classes, floor, extra, seed, data
):
    samples = clients * max(floor, 2) + extra
    wanted = data.draw(st.none() | st.integers(max(floor, 2), samples // clients))
    labels = np.random.default_rng(seed).integers(0, classes, samples)
    spec = Partition(scheme=scheme, alpha=alpha, min_samples=floor, samples_per_client=wanted)
    parts = partition(labels, clients, spec, seed)
    sizes = [len(part) for part in parts]
    dealt = np.concatenate(parts)
    assert len(parts) == clients
    assert len(np.unique(dealt)) == len(dealt)
    assert dealt.min() >= 0 and dealt.max() < samples
    assert min(sizes) >= max(floor, 2)
    if wanted is None:
        assert sum(sizes) == samples
    elif scheme == "quantity":
        assert sum(sizes) == clients * wanted
    else:
        assert sizes == [wanted] * clients


@pytest.mark.parametrize("scheme", DRAWN)
def test_a_seed_fixes_the_parts_and_another_seed_changes_them(scheme: str):
    labels = balanced(2000)
    spec = Partition(scheme=scheme)
    first, again = partition(labels, 8, spec, 3), partition(labels, 8, spec, 3)
    other = partition(labels, 8, spec, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("wanted", [None, 40])
@pytest.mark.parametrize("scheme", ["dirichlet", "dirichlet-per-client"])
def test_small_alpha_skews_the_labels_and_large_alpha_does_not(scheme: str, wanted: int | None):
    labels = balanced(20_000)
    spread = [
        mean_total_variation(
            partition(labels, 20, Partition(scheme=scheme, alpha=alpha, samples_per_client=wanted), 1), labels
        )
        for alpha in (0.1, 1.0, 1000.0)
    ]
    assert spread[0] > 0.6 and 0.2 < spread[1] < 0.6 and spread[2] < 0.06


@pytest.mark.parametrize("scheme", ["dirichlet", "dirichlet-per-client"])
def test_label_skew_keeps_every_class_in_the_federation(scheme: str):
    labels = balanced(5000)
    parts = partition(labels, 10, Partition(scheme=scheme, alpha=0.1), 2)
    assert np.bincount(labels[np.concatenate(parts)]).tolist() == [500] * 10


def test_class_mixes_are_exact_where_samples_suffice():
    mixes = np.array([[0.5, 0.3, 0.2], [0.0, 0.25, 0.75]])
    sizes, supply = np.array([10, 8]), np.array([100, 100, 100])
    counts = mix_counts(mixes, sizes, supply, np.random.default_rng(0))
    assert counts.tolist() == [[5, 3, 2], [0, 2, 6]]


def test_an_exhausted_class_passes_its_share_on_proportionally():
    # The client wants 60 of class 0, which has 20: the other 40 are shared 3 : 1.
    counts = mix_counts(
        np.array([[0.6, 0.3, 0.1]]), np.array([100]), np.array([20, 1000, 1000]), np.random.default_rng(0)
    )
    assert counts.tolist() == [[20, 60, 20]]


def test_a_client_with_exhausted_classes_takes_the_remaining_samples():
    counts = mix_counts(
        np.array([[1.0, 0.0, 0.0]]), np.array([10]), np.array([4, 0, 9]), np.random.default_rng(0)
    )
    assert counts.tolist() == [[4, 0, 6]]


def test_the_minimum_is_filled_from_the_largest_holder_of_a_class():
    counts = np.array([[1, 0], [30, 50], [40, 5]])
    lifted = lift_to_floor(counts, np.array([[0.9, 0.1], [30, 50], [40, 5]]), 10)
    assert lifted.tolist() == [[10, 0], [30, 50], [31, 5]]


@pytest.mark.parametrize(("alpha", "median"), [(0.1, 6.1), (0.5, 1.6), (10.0, 0.083)])
def test_label_mixes_have_the_expected_divergence(alpha: float, median: float):
    p = draw_label_mixes(300, 10, alpha, np.random.default_rng(0)) + 1e-6
    p /= p.sum(axis=1, keepdims=True)
    divergence = (p * np.log(p)).sum(axis=1)[:, None] - p @ np.log(p).T
    pairs = divergence[~np.eye(len(p), dtype=bool)]
    assert np.median(pairs) == pytest.approx(median, rel=0.15)


def test_shards_give_every_client_few_labels():
    labels = balanced(6000)
    parts = partition(labels, 10, Partition(scheme="shards", shards_per_client=2), 1)
    # 20 shards of 300 out of classes of 600: a shard lies within one class.
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)
    assert {len(part) for part in parts} == {600}


def test_quantity_skew_affects_sizes_and_not_labels():
    labels = balanced(50_000)
    parts = partition(labels, 10, Partition(scheme="quantity", alpha=0.3, min_samples=500), 1)
    sizes = np.array([len(part) for part in parts])
    assert sizes.min() >= 500 and sizes.max() > 5 * sizes.min()
    assert mean_total_variation(parts, labels) < 0.06


@pytest.mark.parametrize("scheme", DRAWN)
def test_a_thousand_clients_divide_all_samples(scheme: str):
    labels = balanced(60_000)
    parts = partition(labels, 1000, Partition(scheme=scheme, alpha=0.1), 1)
    assert min(len(part) for part in parts) >= 10
    assert len(np.unique(np.concatenate(parts))) == 60_000


@pytest.mark.parametrize(
    ("spec", "clients", "key", "words"),
    [
        ({"samples_per_client": 60}, 20, "samples_per_client", "20 clients × 60 samples = 1200"),
        ({"samples_per_client": 5}, 2, "samples_per_client", "≥ 10"),
        ({"min_samples": 11}, 100, "min_samples", "100 clients × at least 11 samples = 1100"),
        ({"scheme": "shards", "shards_per_client": 30}, 50, "shards_per_client", "≤ 20"),
    ],
)
def test_impossible_partitions_are_refused_with_their_numbers(spec: dict, clients: int, key: str, words: str):
    with pytest.raises(UserError, match=words) as caught:
        partition(balanced(1000), clients, Partition(**spec), 1)
    assert caught.value.key == f"data.partition.{key}"


def written(folder: Path, content: object, **spec: object) -> Partition:
    (folder / "parts.json").write_text(json.dumps(content))
    return Partition(scheme="file", path="parts.json", min_samples=2, **spec)


def test_a_written_partition_is_read_unchanged(tmp_path: Path):
    spec = written(tmp_path, [[3, 1, 2], [7, 9]])
    parts = read_partition_file(spec, 2, 10, [tmp_path])
    assert [part.tolist() for part in parts] == [[1, 2, 3], [7, 9]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([[0, 1], [2, 10]], "client 1: index 10 is not in 0..9"),
        ([[0, 1], [2, -1]], "index -1"),
        ([[0, 1], [2, 1.5]], "index 1.5"),
        ([[0, 1], [2, True]], "index true"),
        ([[0, 1], [2, 0]], "index 0 is listed twice, for clients 0 and 1"),
        ([[0, 1], [2]], "client 1 has 1 samples"),
        ([[0, 1]], "has lists for 1 clients, must have 2"),
        ({"0": [1]}, "must hold a list"),
    ],
)
def test_an_invalid_written_partition_is_refused(tmp_path: Path, content: object, words: str):
    with pytest.raises(UserError, match=words):
        read_partition_file(written(tmp_path, content), 2, 10, [tmp_path])


def test_a_missing_partition_file_names_the_searched_places(tmp_path: Path):
    with pytest.raises(UserError, match=str(tmp_path)):
        read_partition_file(Partition(scheme="file", path="none.json"), 2, 10, [tmp_path])
    with pytest.raises(UserError, match="needs the path"):
        read_partition_file(Partition(scheme="file"), 2, 10)


def test_a_written_partition_contradicting_samples_per_client_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"must be absent .* 2 samples for client 0"):
        read_partition_file(written(tmp_path, [[0, 1], [2, 3]], samples_per_client=4), 2, 10, [tmp_path])


def test_circle_neighbours_are_similar_and_opposite_clients_disjoint():
    mixes = circle_mixes(10, 10)
    np.testing.assert_allclose(mixes[0], [1, 0.6, 0.2, 0, 0, 0, 0, 0, 0.2, 0.6])
    np.testing.assert_array_equal(mixes, [np.roll(mixes[0], client) for client in range(10)])
    likeness = [float(mixes[0] @ other) for other in mixes]
    assert likeness[0] > likeness[1] > likeness[2] > likeness[5] == 0
    assert likeness[1] == pytest.approx(likeness[9])
    for clients, classes in ((1, 1), (7, 1), (3, 2), (12, 5)):
        assert (circle_mixes(clients, classes).sum(axis=1) > 0).all()
