from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.data.dataset import Dataset
from fedkd.data.federated import Sources, federate, load_federated_data
from fedkd.data.normalise import measure
from fedkd.data.partitions.split_samples import split_samples
from fedkd.data.partitions.stratified import local_split
from fedkd.data.request import SourceRequest, data_root_folder
from fedkd.data.sources.digits import load as load_digits
from fedkd.data.streams.pixels import Permutation, to_shape
from fedkd.data.streams.stream import FederatedStream, load_stream
from fedkd.data.streams.stream_plan import class_groups, lay_out
from fedkd.data.transfer import PublicSamples
from fedkd.errors import UserError
from fedkd.scenario.schema import Continual, Scenario, TaskStream
from fedkd.scenario.stream import planned_task_count, resolve_head

KINDS = ("split", "overlapping", "permuted", "rotated")
HEADS = ("task", "domain", "class")


def make(
    head: str | None = None,
    seed: int = 1,
    data: dict[str, Any] | None = None,
    heterogeneity: dict[str, float] | None = None,
    plugin_path: tuple[Path, ...] = (),
    **tasks: Any,
) -> Scenario:
    """A scenario of three clients that learn a stream of tasks on the digits."""
    tables: dict[str, Any] = {
        "seed": seed,
        "plugin_path": [str(folder) for folder in plugin_path],
        "data": {"clients": 3, "transfer": {"size": 30}, "partition": {"scheme": "iid"}, **(data or {})},
        "heterogeneity": heterogeneity or {},
        "continual": {"tasks": tasks},
    }
    if head is not None:
        tables["continual"]["head"] = head
    return Scenario.model_validate(tables)


def stream(*args: Any, **kwargs: Any) -> FederatedStream:
    return load_stream(make(*args, **kwargs))


def colour_file(
    folder: Path, shape: tuple[int, ...] = (3, 6, 5), classes: int = 4, samples: int = 240
) -> str:
    """Write random uint8 images of a few classes, train and test, as an npz file."""
    rng = np.random.default_rng(0)
    y = np.arange(samples) % classes
    x, test_x = (rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in (samples, 40))
    np.savez(folder / "colour.npz", train_x=x, train_y=y, test_x=test_x, test_y=y[:40])
    return "colour.npz"


DIGITS = load_digits(SourceRequest("digits", data_root_folder(None)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_labels_are_units_of_the_samples_classes(head, order):
    tasks = stream(head, kind="split", class_order=order)
    groups = class_groups(TaskStream(class_order=order), 10, seed=1)
    for task, group in zip(tasks, groups, strict=True):
        data, true = task.data, DIGITS.train_y[task.data.source_index]
        assert data.classes == len(task.units) == len(data.class_names)
        assert sorted(set(true.tolist())) == sorted(group)
        units = np.array(task.units)[data.y]
        assert set(units.tolist()) == set(task.own_units)
        if head == "domain":
            assert np.array_equal(np.array(group)[units], true)
        else:
            assert np.array_equal(np.array(tasks.unit_class)[units], true)
        assert [tasks.class_names[unit] for unit in task.own_units] == (
            ["/".join(str(c) for c in column) for column in np.transpose(groups)]
            if head == "domain"
            else [str(c) for c in group]
        )


def test_split_tasks_have_their_own_units():
    apart, shared, all_of = (stream(head, kind="split") for head in HEADS)
    assert [task.units for task in apart] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [task.units for task in shared] == [(0, 1)] * 5 and shared.outputs == 2
    assert [task.units for task in all_of] == [tuple(range(10))] * 5
    assert [task.own_units for task in all_of] == [task.units for task in apart]
    assert apart.unit_class == all_of.unit_class == tuple(range(10))
    assert [task.name for task in apart] == ["0 1", "2 3", "4 5", "6 7", "8 9"]
    assert all_of[1].data.class_names == tuple("0123456789")


def test_the_partition_is_independent_of_the_head():
    apart, shared, all_of = (stream(head, kind="split", data={"partition": {}}) for head in HEADS)
    for a, b, c in zip(apart, shared, all_of, strict=True):
        assert np.array_equal(a.data.x, b.data.x) and np.array_equal(a.data.x, c.data.x)
        assert np.array_equal(a.data.y, b.data.y)
        assert np.array_equal(np.array(c.own_units)[a.data.y], c.data.y)
        assert np.array_equal(np.array(c.own_units)[a.data.test_y], c.data.test_y)
        assert np.array_equal(np.array(c.own_units)[a.data.transfer_y], c.data.transfer_y)
        shares = c.data.label_distribution()
        assert np.allclose(shares[:, list(c.own_units)], a.data.label_distribution())
        assert np.allclose(shares.sum(axis=1), 1)


def test_a_split_gives_every_class_to_one_task():
    tasks = stream(kind="split", data={"transfer": {"source": "noise", "size": 10}})
    dealt = np.concatenate([task.data.source_index for task in tasks])
    assert np.array_equal(np.sort(dealt), np.arange(len(DIGITS.train_y)))
    assert sum(len(task.data.test_y) for task in tasks) == len(DIGITS.test_y)


def test_samples_follow_the_source_index_and_global_normalisation():
    mean, std = DIGITS.train_x.mean(dtype=np.float64), DIGITS.train_x.std(dtype=np.float64)
    for task in stream(kind="split"):
        wanted = (DIGITS.train_x[task.data.source_index].astype(np.float64) - mean) / std
        assert np.allclose(task.data.x, wanted, atol=1e-5)


def test_scheme_holdout_and_test_sets_hold_within_every_task():
    data = {
        "partition": {"scheme": "iid", "samples_per_client": 40},
        "transfer": {"size": 50},
        "test_size": 20,
    }
    for task in stream(kind="split", data=data):
        bounds = zip(task.data.train_bounds, task.data.test_bounds, strict=True)
        assert [(b - a, d - c) for (a, b), (c, d) in bounds] == [(32, 8)] * 3
        assert task.transfer_x.shape == (50, 1, 8, 8) and len(task.data.test_y) == 20
        assert set(task.data.test_y) == {0, 1} == set(task.data.transfer_y)
        private = {sample.tobytes() for sample in task.data.x}
        assert not any(sample.tobytes() in private for sample in task.transfer_x)


def labelled(labels) -> Dataset:
    x = np.zeros((len(labels), 1))
    return Dataset("labels", ("0", "1", "2"), x, labels, x, labels)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "twins:deal"])
def test_every_task_has_its_own_draws(scheme, tmp_path):
    """Tasks of equal labels would be dealt alike if their draws did not carry the task."""
    (tmp_path / "twins.py").write_text(
        "import numpy as np\n"
        "def deal(labels, clients, generator):\n"
        "    return np.array_split(generator.permutation(len(labels)), clients)\n"
    )
    scenario = make(data={"partition": {"scheme": scheme}, "transfer": {"size": 0}})
    labels = np.arange(90) % 3
    first, second, again = (
        split_samples(labelled(labels), scenario, (tmp_path,), task=task) for task in (0, 1, 0)
    )
    assert np.array_equal(first.private, again.private)
    shards = [
        [set(d.private[slice(*bounds)]) for d, bounds in ((first, one), (second, two))]
        for one, two in zip(first.shares, second.shares, strict=True)
    ]
    assert all(mine != others for mine, others in shards)


def test_each_task_has_its_own_holdout_and_test_sets():
    labels = np.arange(90) % 3
    scenario = make(data={"test_size": 30})
    first, second = (split_samples(labelled(labels), scenario, (), task=task) for task in (0, 1))
    assert not np.array_equal(first.held_out, second.held_out)
    assert not np.array_equal(first.common, second.common)
    splits = [local_split(labels, 0.2, seed=1, client=0, task=task)[1] for task in (0, 1)]
    assert set(splits[0]) != set(splits[1])


def test_label_noise_is_drawn_for_every_task():
    dataset = Dataset(
        "zeros", ("a", "b"), np.zeros((90, 2)), np.arange(90) % 2, np.zeros((4, 2)), np.arange(4) % 2
    )
    sources = Sources(make(heterogeneity={"label_noise": 0.5}))
    none = PublicSamples(np.zeros((0, 2), dtype=np.float32), None)
    one, two = (federate(dataset, measure(dataset.train_x), sources, none, task=task) for task in (0, 1))
    wrong = [np.flatnonzero(data.y != dataset.train_y[data.source_index]) for data in (one, two)]
    assert one.train_bounds == two.train_bounds and len(wrong[0]) == len(wrong[1]) > 0
    assert not np.array_equal(*wrong)


def test_a_stream_is_a_pure_function_of_scenario_and_seed():
    for kind in KINDS:
        first, again, other = (stream(kind=kind, seed=seed, class_order="shuffled") for seed in (1, 1, 2))
        for a, b in zip(first, again, strict=True):
            one, two = a.client(2), b.client(2)
            for field in ("train_x", "train_y", "test_x", "test_y", "transfer_x", "global_x", "global_y"):
                assert np.array_equal(getattr(one, field), getattr(two, field)), (kind, field)
        assert first.unit_class == again.unit_class
        assert not np.array_equal(first[1].data.source_index[:40], other[1].data.source_index[:40])


def test_class_order_is_drawn_from_the_seed():
    shuffled = TaskStream(class_order="shuffled")
    groups = class_groups(shuffled, 10, seed=3)
    assert sorted(c for group in groups for c in group) == list(range(10))
    assert groups == class_groups(shuffled, 10, seed=3) != class_groups(shuffled, 10, seed=4)


def test_the_class_order_may_have_a_seed_of_its_own():
    def groups(class_seed: int | None, seed: int):
        return class_groups(TaskStream(class_order="shuffled", class_seed=class_seed), 10, seed=seed)

    assert groups(3, seed=1) == groups(3, seed=2) == groups(None, seed=3) != groups(4, seed=1)


@pytest.mark.parametrize("head", HEADS)
def test_labels_of_listed_classes_follow_the_lists(head):
    lists = [[7, 1], [0], [9, 3, 2]]
    tasks = stream(head, kind="split", classes=lists)
    assert [task.name for task in tasks] == ["7 1", "0", "9 3 2"]
    for task, own in zip(tasks, lists, strict=True):
        true = DIGITS.train_y[task.data.source_index]
        place = [task.own_units.index(unit) for unit in np.array(task.units)[task.data.y].tolist()]
        assert np.array_equal(np.array(own)[place], true)
    assert tasks.outputs == (3 if head == "domain" else 6)
    if head == "class":
        assert tasks.unit_class == (7, 1, 0, 9, 3, 2)


def test_listed_classes_may_return_in_a_later_task():
    tasks = stream("class", kind="overlapping", classes=[[0, 1], [1, 2], [0]])
    assert [task.own_units for task in tasks] == [(0, 1), (1, 2), (0,)] and tasks.outputs == 3


@pytest.mark.parametrize(
    ("tasks", "groups"),
    [
        ({}, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]),
        ({"count": 2}, [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]),
        ({"count": 3, "classes_per_task": 3}, [(0, 1, 2), (3, 4, 5), (6, 7, 8)]),
        ({"kind": "overlapping"}, [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7), (6, 7, 8, 9)]),
        ({"kind": "overlapping", "count": 2, "stride": 1}, [(0, 1, 2, 3), (1, 2, 3, 4)]),
        ({"kind": "overlapping", "classes_per_task": 7}, [tuple(range(7)), tuple(range(3, 10))]),
        ({"kind": "overlapping", "classes_per_task": 1, "count": 2}, [(0,), (1,)]),
        ({"count": 4, "first_classes": 4}, [(0, 1, 2, 3), (4, 5), (6, 7), (8, 9)]),
        ({"count": 3, "first_classes": 5, "classes_per_task": 1}, [(0, 1, 2, 3, 4), (5,), (6,)]),
        ({"count": 2, "first_classes": 1}, [(0,), tuple(range(1, 10))]),
        ({"classes": [[7, 1], [0], [9, 3, 2]]}, [(7, 1), (0,), (9, 3, 2)]),
        ({"kind": "overlapping", "classes": [[0, 1, 2], [2, 5], [1]]}, [(0, 1, 2), (2, 5), (1,)]),
    ],
)
def test_classes_can_be_grouped_into_tasks(tasks, groups):
    assert list(class_groups(TaskStream(**tasks), 10, seed=0)) == groups


@pytest.mark.parametrize(
    ("tasks", "key", "words"),
    [
        ({"count": 3}, "count", "allowed: 1, 2, 5, 10, or give classes_per_task"),
        ({"classes_per_task": 3}, "count", "5 tasks × 3 classes = 15.*at most 3 tasks"),
        ({"kind": "overlapping", "classes_per_task": 11}, "classes_per_task", "must be ≤ 10"),
        ({"kind": "overlapping", "count": 5}, "count", "must be ≤ 4"),
        ({"kind": "datasets", "count": 2}, "count", "must be ≤ 1, the number of data sets"),
        ({"first_classes": 10}, "first_classes", "must be < 10, .* got 10"),
        (
            {"first_classes": 5, "count": 3},
            "count",
            "5 classes after the first 5 do not divide evenly among 2 tasks; allowed: 2, 6, or give",
        ),
        (
            {"first_classes": 5, "count": 4, "classes_per_task": 2},
            "count",
            "3 tasks × 2 classes = 6, but the data have 5 classes after the first 5; at most 3 tasks",
        ),
        ({"classes": [[0, 1], [2, 10]]}, "classes.1.1", "must be ≤ 9, the last of the data's 10 .* got 10"),
    ],
)
def test_impossible_task_counts_are_refused(tasks, key, words):
    with pytest.raises(UserError, match=words) as caught:
        stream(**tasks)
    assert caught.value.key == f"continual.tasks.{key}"


def test_overlapping_windows_share_classes_and_samples():
    apart, shared, all_of = (stream(head, kind="overlapping") for head in HEADS)
    assert apart.outputs == 16 and apart.unit_class == (0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9)
    assert all_of.outputs == 10 and [task.own_units[0] for task in all_of] == [0, 2, 4, 6]
    assert shared.outputs == 4 and shared.class_names[0] == "0/2/4/6"
    public = stream(kind="overlapping", data={"transfer": {"source": "noise", "size": 5}})
    for task, first in zip(public, (0, 2, 4, 6), strict=True):
        own = np.flatnonzero((DIGITS.train_y >= first) & (DIGITS.train_y < first + 4))
        assert np.array_equal(np.sort(task.data.source_index), own)


def test_the_first_permuted_task_is_unpermuted():
    scenario = make(kind="permuted", count=3)
    tasks, plain = load_stream(scenario), load_federated_data(scenario.model_copy(update={"continual": None}))
    assert np.array_equal(tasks[0].data.source_index, plain.source_index)
    mine, theirs = tasks[0].client(1), plain.client(1)
    for field in ("train_x", "train_y", "test_x", "test_y", "transfer_x", "global_x", "global_y"):
        assert np.array_equal(getattr(mine, field), getattr(theirs, field))
    assert [task.name for task in tasks] == ["unpermuted", "permutation 1", "permutation 2"]


def test_the_first_permuted_task_may_be_permuted_too():
    plain, moved = (stream(kind="permuted", count=3, permute_first=first) for first in (False, True))
    assert [task.name for task in moved] == ["permutation 0", "permutation 1", "permutation 2"]
    assert len({tuple(task.transform.source) for task in moved}) == 3
    was, now = plain[0].client(0), moved[0].client(0)
    order = moved[0].transform.source
    flat = was.train_x.reshape(len(was.train_x), -1)
    assert np.array_equal(now.train_x.reshape(flat.shape), flat[:, order]) and not np.array_equal(
        flat, now.train_x
    )
    for a, b in zip(plain[1:], moved[1:], strict=True):
        assert np.array_equal(a.client(0).train_x, b.client(0).train_x)


def test_a_permutation_is_a_bijection_and_the_same_for_all_samples():
    tasks = stream(kind="permuted", count=4)
    sources = [task.transform.source for task in tasks[1:]]
    assert all(np.array_equal(np.sort(source), np.arange(64)) for source in sources)
    assert len({tuple(source) for source in sources}) == 3
    for task, source in zip(tasks[1:], sources, strict=True):
        for n in range(3):
            seen, base = task.client(n), task.data.client(n)
            for field in ("train_x", "test_x", "transfer_x", "global_x"):
                flat = getattr(base, field).reshape(-1, 64)
                expected = np.stack([flat[:, place] for place in source], axis=1).reshape(-1, 1, 8, 8)
                assert np.array_equal(getattr(seen, field), expected)
            assert np.array_equal(seen.train_y, base.train_y) and seen.classes == 10


def test_permutations_keep_channels_together_and_commute_with_scaling(tmp_path):
    data = {"dataset": "npz", "args": {"path": colour_file(tmp_path)}}
    task = stream(kind="permuted", count=2, data=data, plugin_path=(tmp_path,))[1]
    with np.load(tmp_path / "colour.npz") as file:
        raw = file["train_x"].astype(np.float64)
    moved = raw.reshape(240, 3, 30)[:, :, task.transform.source].reshape(240, 3, 6, 5)
    mean, std = raw.mean(axis=(0, 2, 3), keepdims=True), raw.std(axis=(0, 2, 3), keepdims=True)
    expected = ((moved - mean) / std)[task.data.source_index]
    for n in range(3):
        assert np.allclose(task.client(n).train_x, expected[slice(*task.data.train_bounds[n])], atol=1e-5)


def test_a_permutation_of_a_vector_moves_its_features():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert Permutation(np.array([2, 0, 1]))(x).tolist() == [[2, 0, 1], [5, 3, 4]]


def test_quarter_turns_rotate_raw_images_before_normalisation(tmp_path):
    data = {"dataset": "npz", "args": {"path": colour_file(tmp_path, shape=(3, 6, 6))}}
    tasks = stream(kind="rotated", count=4, max_angle=360.0, data=data, plugin_path=(tmp_path,))
    assert [task.name for task in tasks] == ["0°", "90°", "180°", "270°"]
    with np.load(tmp_path / "colour.npz") as file:
        raw, test = file["train_x"].astype(np.float64), file["test_x"].astype(np.float64)
    mean, std = raw.mean(axis=(0, 2, 3), keepdims=True), raw.std(axis=(0, 2, 3), keepdims=True)
    for turns, task in enumerate(tasks):
        seen, own = task.client(2), task.data.source_index[slice(*task.data.train_bounds[2])]
        assert np.allclose(seen.train_x, (np.rot90(raw, turns, (2, 3))[own] - mean) / std, atol=1e-4)
        assert np.allclose(seen.global_x, (np.rot90(test, turns, (2, 3)) - mean) / std, atol=1e-4)


def test_a_rotation_fills_with_black():
    tasks = stream(kind="rotated", count=4)
    assert [task.name for task in tasks] == ["0°", "45°", "90°", "135°"]
    black = -DIGITS.train_x.mean(dtype=np.float64) / DIGITS.train_x.std(dtype=np.float64)
    corners = tasks[1].client(0).train_x[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.allclose(corners, black, atol=1e-5)
    assert tasks[1].transfer_x.dtype == np.float32 and tasks[1].transfer_x.flags.c_contiguous


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_tasks_of_changed_pixels_have_their_own_units(kind):
    default, apart, all_of = (stream(head, kind=kind, count=3) for head in (None, "task", "class"))
    assert default.outputs == 10 and all(task.units == tuple(range(10)) for task in default)
    assert default.class_names == tuple("0123456789")
    for tasks in (apart, all_of):
        assert tasks.outputs == 30 and tasks.unit_class == tuple(range(30))
        assert [task.own_units for task in tasks] == [tuple(range(t, t + 10)) for t in (0, 10, 20)]
        assert len(set(tasks.class_names)) == 30
    for task in all_of:
        true = DIGITS.train_y[task.data.source_index]
        assert np.array_equal(task.data.y, true + 10 * task.index) and task.data.classes == 30


@pytest.mark.parametrize("head", [None, "class"])
def test_changed_pixels_share_their_samples_in_memory_and_in_a_pickle(head):
    tasks = stream(head, kind="permuted", count=20)
    assert all(task.data.x is tasks[0].data.x for task in tasks)
    before = tasks[7].client(1)
    body = pickle.dumps(tasks, protocol=5)
    data = tasks[0].data
    once = data.x.nbytes + data.test_x.nbytes + data.transfer_x.nbytes
    labels = data.y.nbytes + data.test_y.nbytes + data.transfer_y.nbytes
    assert len(body) < once + labels * (20 if head else 1) + 20 * 64 * 8 + data.y.nbytes + 20_000
    copy = pickle.loads(body)
    assert all(task.data.x is copy[0].data.x for task in copy)
    assert np.array_equal(copy[7].client(1).test_x, before.test_x)


def test_a_hundred_permuted_tasks_share_one_data_set(data_root):
    scenario = make(
        kind="permuted",
        count=100,
        data={"dataset": "mnist", "root": str(data_root), "partition": {"samples_per_client": 500}},
    )
    tasks = load_stream(scenario)
    client = tasks.client(0)
    shapes = {client[t].train_x.shape for t in range(100)}
    assert shapes == {(400, 1, 28, 28)} and len(tasks) == len(client) == 100
    assert len({id(task.data) for task in tasks}) == 1


def test_a_client_caches_its_last_two_tasks():
    client = stream(kind="permuted", count=4).client(0)
    first, second = client[0], client[1]
    assert client[0] is first and client[1] is second
    client[2]
    assert client[1] is second and client[-4] is not first
    assert [data.classes for data in client] == [10] * 4 and len(client[1:3]) == 2
    with pytest.raises(IndexError):
        client[4]
    assert np.array_equal(pickle.loads(pickle.dumps(client))[1].train_x, second.train_x)


def test_clients_of_one_process_share_common_arrays():
    tasks = stream(kind="rotated", count=3)
    one, two = tasks.client(0)[2], tasks.client(1)[2]
    assert one.global_x is two.global_x and one.transfer_x is two.transfer_x
    plain = stream(kind="split")[1]
    assert np.shares_memory(plain.client(0).train_x, plain.data.x)
    assert plain.client(0).transfer_x is plain.transfer_x is plain.data.transfer_x


def test_data_sets_share_a_shape_and_keep_their_scale_and_classes(tmp_path):
    data = {"dataset": "npz", "args": {"path": colour_file(tmp_path)}}
    wanted = {"kind": "datasets", "datasets": ["digits", "npz"], "data": data, "plugin_path": (tmp_path,)}
    for shape, expected in ((None, (1, 8, 8)), ([3, 7, 9], (3, 7, 9))):
        tasks = stream(shape=shape, **wanted)
        assert tasks.input_shape == expected and tasks.name == "digits+npz"
        assert [task.name for task in tasks] == ["digits", "npz"]
        assert [task.units for task in tasks] == [tuple(range(10)), tuple(range(10, 14))]
        assert tasks.unit_class == tuple(range(14)) and tasks.class_names[10] == "0 (npz)"
        for task in tasks:
            everything = np.concatenate([task.data.x, task.transfer_x])
            assert everything.shape[1:] == task.data.test_x.shape[1:] == expected
            assert np.allclose(everything.mean(axis=(0, 2, 3)), 0, atol=1e-4)
            assert np.allclose(everything.std(axis=(0, 2, 3)), 1, atol=1e-4)
        assert np.array_equal(tasks[0].data.y, DIGITS.train_y[tasks[0].data.source_index])
    domain = stream("domain", **wanted)
    assert domain.outputs == 10 and domain[1].units == (0, 1, 2, 3) and domain.class_names[9] == "9"
    assert stream("class", **wanted).outputs == 14
    assert len(stream(count=1, **wanted)) == 1 and stream(kind="datasets").name == "digits"


def test_real_data_sets_are_brought_to_one_shape(data_root):
    tasks = stream(
        kind="datasets",
        datasets=["digits", "mnist"],
        data={
            "root": str(data_root),
            "partition": {"scheme": "iid", "samples_per_client": 40},
            "test_size": 50,
        },
    )
    assert tasks[1].client(0).train_x.shape == (32, 1, 8, 8)
    # Black, 0 of 0..1, is where the data set's own statistics put it: it differs between the two.
    black = [float(task.data.x.min()) for task in tasks]
    assert black[0] < -0.7 and black[1] < -0.4 and abs(black[0] - black[1]) > 0.1


def test_integer_images_stay_integer_when_they_change_shape(tmp_path):
    from fedkd.data.sources.npz import load
    from fedkd.data.transfer import convert_images

    request = SourceRequest("npz", tmp_path, {"path": colour_file(tmp_path)})
    dataset = load(request)
    changed = to_shape(dataset, (1, 4, 4))
    assert changed.train_x.dtype == np.uint8 and changed.train_x.shape == (240, 1, 4, 4)
    exact = convert_images(dataset.train_x, (1, 4, 4))
    assert np.abs(changed.train_x / 255.0 - exact).max() <= 0.5 / 255 + 1e-6
    assert to_shape(dataset, (3, 6, 5)) is dataset


def test_a_public_transfer_set_is_the_same_in_all_tasks(tmp_path):
    colour_file(tmp_path, shape=(1, 8, 8))
    for transfer in (
        {"source": "noise", "size": 20},
        {"source": "npz", "args": {"path": "colour.npz"}, "size": 20},
    ):
        tasks = stream(kind="split", data={"transfer": transfer}, plugin_path=(tmp_path,))
        assert all(task.transfer_x is tasks[0].transfer_x for task in tasks)
        assert tasks[0].transfer_x.shape == (20, 1, 8, 8) and tasks[0].data.transfer_y is None
        turned = stream(kind="rotated", data={"transfer": transfer}, plugin_path=(tmp_path,))
        assert not np.allclose(turned[0].transfer_x, turned[1].transfer_x)


@pytest.mark.parametrize("source", ["holdout", "noise", "npz"])
@pytest.mark.parametrize("kind", [None, *KINDS, "datasets"])
def test_a_transfer_set_may_be_empty(source, kind, tmp_path):
    transfer: dict[str, Any] = {"source": source, "size": 0}
    if source == "npz":
        transfer["args"] = {"path": colour_file(tmp_path)}
    scenario = make(kind=kind or "split", data={"transfer": transfer}, plugin_path=(tmp_path,))
    if kind is None:
        plain = load_federated_data(scenario.model_copy(update={"continual": None}))
        assert plain.transfer_x.shape == (0, 1, 8, 8) and len(plain.source_index) == len(DIGITS.train_y)
        return
    for task in load_stream(scenario):
        assert task.transfer_x.shape == task.client(0).transfer_x.shape == (0, 1, 8, 8)
        held = np.isin(DIGITS.train_y, np.unique(DIGITS.train_y[task.data.source_index]))
        assert len(task.data.source_index) == held.sum()


def test_a_written_partition_may_use_all_samples_without_holdout(tmp_path):
    lists = [list(range(0, 700)), list(range(700, 1438))]
    (tmp_path / "parts.json").write_text(json.dumps(lists))
    data = {
        "clients": 2,
        "partition": {"scheme": "file", "path": "parts.json"},
        "transfer": {"size": 0},
    }
    for task in stream(kind="split", data=data, plugin_path=(tmp_path,)):
        for n, indices in enumerate(lists):
            own = task.data.source_index[task.data.train_bounds[n][0] : task.data.test_bounds[n][1]]
            classes = [2 * task.index, 2 * task.index + 1]
            assert set(own) == {i for i in indices if DIGITS.train_y[i] in classes}
    held = dict(data, partition={"scheme": "file", "path": "fewer.json"}, transfer={"size": 20})
    (tmp_path / "fewer.json").write_text(json.dumps([lists[0], lists[1][:500]]))
    for task in stream(kind="overlapping", data=held, plugin_path=(tmp_path,)):
        assert task.data.source_index.max() < 1200 and len(task.transfer_x) == 20
    with pytest.raises(UserError, match="lists indices of one data set") as caught:
        stream(kind="datasets", datasets=["digits", "mnist"], data=data, plugin_path=(tmp_path,))
    assert caught.value.key == "data.partition.scheme"


def test_a_written_partition_must_give_every_client_samples_of_every_task(tmp_path):
    lists = [np.flatnonzero(DIGITS.train_y < 8).tolist(), np.flatnonzero(DIGITS.train_y >= 8).tolist()]
    (tmp_path / "parts.json").write_text(json.dumps(lists))
    data = {"clients": 2, "partition": {"scheme": "file", "path": "parts.json"}, "transfer": {"size": 0}}
    with pytest.raises(UserError, match=r"task 0 \(0 1\): client 1 has 0 samples") as caught:
        stream(kind="split", data=data, plugin_path=(tmp_path,))
    assert caught.value.key == "data.partition.path"


@pytest.mark.parametrize("head", HEADS)
def test_wrong_labels_are_classes_of_the_same_task(head):
    noisy = stream(head, kind="split", count=2, heterogeneity={"label_noise": 0.9})
    clean = stream(head, kind="split", count=2)
    for task, truth in zip(noisy, clean, strict=True):
        units = np.array(task.units)[task.data.y]
        assert set(units.tolist()) == set(task.own_units)
        assert (task.data.y != truth.data.y).any() and np.array_equal(task.data.x, truth.data.x)
        for bounds in task.data.test_bounds:
            assert np.array_equal(task.data.y[slice(*bounds)], truth.data.y[slice(*bounds)])


def test_client_skew_is_constant_over_tasks_and_noise_is_redrawn(tmp_path):
    x = np.zeros((240, 1, 4, 4), dtype=np.float32)
    np.savez(tmp_path / "black.npz", x=x, y=np.repeat(np.arange(4), 60))
    data = {"dataset": "npz", "args": {"path": "black.npz"}, "transfer": {"size": 0}}
    first, second = stream(
        kind="split",
        count=2,
        data=data,
        heterogeneity={"noise": 2.0, "rotation": 30.0},
        plugin_path=(tmp_path,),
    )
    assert first.data.skew == second.data.skew
    assert not np.allclose(first.data.x, second.data.x)
    for n, skew in enumerate(first.data.skew):
        assert first.client(n).train_x.std() == pytest.approx(skew.noise, rel=0.1)


def test_too_few_samples_are_refused_with_the_task():
    with pytest.raises(UserError, match=r"task 0 \(0 1\): 3 clients × 90 samples") as caught:
        stream(kind="split", data={"partition": {"scheme": "iid", "samples_per_client": 90}})
    assert caught.value.key == "data.partition.samples_per_client"
    with pytest.raises(UserError, match=r"task 0 \(0 1\): must be < \d+, the train samples") as caught:
        stream(kind="split", data={"transfer": {"size": 1000}})
    assert caught.value.key == "data.transfer.size"


def test_a_task_without_test_samples_is_refused(tmp_path):
    x = np.random.default_rng(0).random((200, 3))
    np.savez(tmp_path / "a.npz", train_x=x, train_y=np.arange(200) % 4, test_x=x[:9], test_y=np.arange(9) % 2)
    data = {"dataset": "npz", "args": {"path": "a.npz"}}
    with pytest.raises(UserError, match=r"task 1 \(2 3\): no test sample has one of its classes") as caught:
        stream(kind="split", count=2, data=data, plugin_path=(tmp_path,))
    assert caught.value.key == "continual.tasks.kind"


def test_vectors_can_be_permuted_but_not_rotated_or_reshaped(tmp_path):
    x = np.random.default_rng(0).random((200, 5))
    np.savez(tmp_path / "v.npz", x=x, y=np.arange(200) % 2)
    data = {"dataset": "npz", "args": {"path": "v.npz"}}
    kept = stream(kind="permuted", data=data, plugin_path=(tmp_path,))
    assert kept[3].client(0).train_x.shape[1:] == (5,)
    with pytest.raises(UserError, match="needs images") as caught:
        stream(kind="rotated", data=data, plugin_path=(tmp_path,))
    assert caught.value.key == "continual.tasks.kind"
    with pytest.raises(UserError, match=r"'npz' have shape \[5\] and cannot") as caught:
        stream(kind="datasets", datasets=["digits", "npz"], data=data, plugin_path=(tmp_path,))
    assert caught.value.key == "continual.tasks.datasets"


def test_a_data_set_of_the_stream_cannot_be_its_transfer_set():
    with pytest.raises(UserError, match="would leak"):
        stream(
            kind="datasets",
            datasets=["digits"],
            data={"dataset": "mnist", "transfer": {"source": "digits", "size": 10}},
        )


def test_an_unknown_data_set_is_refused_with_its_list_index():
    with pytest.raises(UserError, match="mnits") as caught:
        stream(kind="datasets", datasets=["digits", "mnits"])
    assert caught.value.key == "continual.tasks.datasets.1"


def test_a_scenario_without_tasks_gives_no_stream():
    with pytest.raises(ValueError, match="no stream"):
        load_stream(Scenario())


def test_missing_heads_and_counts_get_defaults():
    for kind, head in (
        ("split", "task"),
        ("permuted", "domain"),
        ("rotated", "domain"),
        ("datasets", "task"),
    ):
        assert resolve_head(Continual(tasks=TaskStream(kind=kind))) == head
        assert resolve_head(Continual(tasks=TaskStream(kind=kind), head="class")) == "class"
    assert planned_task_count(TaskStream(kind="overlapping")) is None
    assert planned_task_count(TaskStream(kind="overlapping", count=3)) == 3
    assert planned_task_count(TaskStream(kind="datasets", datasets=["digits", "mnist"])) == 2
    assert planned_task_count(TaskStream(kind="datasets")) == 1 and planned_task_count(TaskStream()) == 5


def test_domain_heads_fit_the_task_with_the_most_classes():
    outputs = lay_out("domain", [(0, 1), (2, 3, 4)])
    assert outputs.unit_class == (0, 1, 2) and outputs.units == outputs.own_units == ((0, 1), (0, 1, 2))
    met = lay_out("class", [(7, 3), (3, 5)])
    assert met.unit_class == (7, 3, 5) and met.own_units == ((0, 1), (1, 2)) and met.units[1] == (0, 1, 2)


def test_a_plain_scenario_keeps_its_historical_draws():
    partition = {"scheme": "dirichlet", "samples_per_client": 100}
    scenario = make(
        seed=7, data={"clients": 4, "transfer": {"size": 60}, "test_size": 40, "partition": partition}
    )
    data = load_federated_data(scenario.model_copy(update={"continual": None}))
    assert data.source_index[[0, 1, 2, -2, -1]].tolist() == [748, 315, 45, 1095, 417]
    assert data.transfer_y[:8].tolist() == [5, 3, 9, 6, 3, 4, 8, 6]
