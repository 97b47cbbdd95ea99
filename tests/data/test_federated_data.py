from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest

from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.data.sources.digits import _rows
from fedkd.errors import UserError


def test_digits_equal_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    assert np.array_equal(_rows(), np.column_stack([digits.data, digits.target]))


def stored_digits() -> tuple[np.ndarray, np.ndarray]:
    """The train split of the digits, found independently: all digits, in order, less the test split."""
    from fedkd.data.request import SourceRequest, data_root_folder
    from fedkd.data.sources.digits import load

    dataset = load(SourceRequest("digits", data_root_folder(None)))
    return dataset.train_x, dataset.train_y


def test_arrays_are_ordered_by_client_with_train_before_test(scenario):
    data = load_federated_data(scenario(clients=7, transfer={"size": 300}))
    edges = [edge for pair in zip(data.train_bounds, data.test_bounds, strict=True) for edge in pair]
    assert edges[0][0] == 0 and edges[-1][1] == len(data.x) == len(data.y) == len(data.source_index)
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert all(stop > start for start, stop in edges)
    assert data.num_clients == 7 and data.classes == 10 and data.input_shape == (1, 8, 8)


def test_samples_per_client_are_split_by_the_test_fraction(scenario):
    data = load_federated_data(
        scenario(clients=5, partition={"samples_per_client": 100}, transfer={"size": 300}, test_fraction=0.2)
    )
    assert [stop - start for start, stop in data.train_bounds] == [80] * 5
    assert [stop - start for start, stop in data.test_bounds] == [20] * 5


def test_samples_are_normalised_and_follow_the_source_index(scenario):
    data = load_federated_data(scenario(transfer={"size": 300}))
    x, y = stored_digits()
    assert len(np.unique(data.source_index)) == len(data.source_index)
    assert np.array_equal(data.y, y[data.source_index])
    expected = (x.astype(np.float64) - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    assert np.allclose(data.x, expected[data.source_index], atol=1e-5)
    for array in (data.x, data.transfer_x, data.test_x):
        assert array.dtype == np.float32 and array.flags.c_contiguous
    assert data.y.dtype == data.test_y.dtype == np.int64


def test_no_sample_is_both_private_and_in_the_common_test_set(scenario):
    data = load_federated_data(scenario(transfer={"size": 300}))
    elsewhere = {sample.tobytes() for sample in np.concatenate([data.x, data.transfer_x])}
    assert not any(sample.tobytes() in elsewhere for sample in data.test_x)


def test_a_local_test_set_has_its_client_s_label_distribution(scenario):
    data = load_federated_data(scenario(clients=4, partition={"alpha": 0.3}, transfer={"size": 200}))
    for n in range(4):
        client = data.client(n)
        train = np.bincount(client.train_y, minlength=10) / len(client.train_y)
        test = np.bincount(client.test_y, minlength=10) / len(client.test_y)
        assert np.abs(train - test).max() < 1.5 / len(client.test_y) + 0.01
        assert np.allclose(data.label_distribution()[n], train)


def test_the_data_of_a_client_are_views(scenario):
    data = load_federated_data(scenario(transfer={"size": 300}))
    client = data.client(3)
    for view, whole in ((client.train_x, data.x), (client.test_y, data.y), (client.global_x, data.test_x)):
        assert np.shares_memory(view, whole)
    assert client.classes == 10 and client.input_shape == (1, 8, 8)


def test_pickling_moves_arrays_out_of_band(scenario):
    data = load_federated_data(scenario(transfer={"size": 300}))
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(head) < 5000
    copy: FederatedData = pickle.loads(head, buffers=buffers)
    assert np.shares_memory(copy.x, data.x) and copy.class_names == data.class_names


def test_the_seed_fixes_all_draws_and_keeps_the_test_split(scenario):
    first, again, other = (load_federated_data(scenario(seed=s, transfer={"size": 300})) for s in (1, 1, 2))
    assert np.array_equal(first.x, again.x) and np.array_equal(first.transfer_x, again.transfer_x)
    assert not np.array_equal(first.source_index[:50], other.source_index[:50])
    assert np.array_equal(first.test_x, other.test_x)


def test_the_common_test_set_keeps_class_shares(scenario):
    full = load_federated_data(scenario(transfer={"size": 300}))
    cut = load_federated_data(scenario(transfer={"size": 300}, test_size=100))
    shares = np.bincount(full.test_y) / len(full.test_y) * 100
    assert len(cut.test_y) == 100
    assert np.abs(np.bincount(cut.test_y) - shares).max() < 1
    with pytest.raises(UserError, match="must be ≤ 359") as caught:
        load_federated_data(scenario(transfer={"size": 300}, test_size=360))
    assert caught.value.key == "data.test_size"


def test_too_many_samples_are_refused(scenario):
    with pytest.raises(UserError, match="only 1138 private samples are left; at most 113 each"):
        load_federated_data(scenario(partition={"samples_per_client": 114}, transfer={"size": 300}))


def test_a_written_partition_and_a_holdout_are_disjoint(scenario, tmp_path):
    lists = [list(range(0, 40)), list(range(100, 130))]
    (tmp_path / "parts.json").write_text(json.dumps(lists))
    made = scenario(
        plugin_path=(tmp_path,),
        clients=2,
        partition={"scheme": "file", "path": "parts.json"},
        transfer={"size": 1368 - 1},
    )
    data = load_federated_data(made)
    assert sorted(data.source_index.tolist()) == lists[0] + lists[1]
    private = {sample.tobytes() for sample in data.x}
    assert not any(sample.tobytes() in private for sample in data.transfer_x)


def test_ten_clients_of_mnist_are_normalised(scenario, data_root):
    made = scenario(dataset="mnist", root=str(data_root), partition={"samples_per_client": 500})
    data = load_federated_data(made)
    assert data.x.shape == (5000, 1, 28, 28) and data.test_x.shape == (10_000, 1, 28, 28)
    assert abs(float(data.x.mean())) < 0.05 and abs(float(data.x.std()) - 1) < 0.05
