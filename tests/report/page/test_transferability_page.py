from __future__ import annotations

import numpy as np
import pytest
from plotly.graph_objects import Figure

from fedkd.report.page.write import write_report
from fedkd.tracking import TransferMap, write_transfer_map


def written(folder, round: int, clients: tuple[int, ...], *, gain=None, **predicted) -> None:
    draws = np.random.default_rng(round)
    size = (len(clients), len(clients))
    found = draws.normal(0, 0.1, size) if gain is None else gain
    write_transfer_map(folder, TransferMap(round, clients, found, 2 * found, predicted))


def test_maps_and_predictions_share_a_slider(make_run, payload_of):
    folder = make_run(clients=4)
    draws = np.random.default_rng(0)
    for round in (1, 3):
        written(folder, round, (0, 1, 3), shift=draws.normal(size=(3, 3)), distance=draws.normal(size=(3, 3)))
    (folder / "transferability" / "round-00002.npz").write_bytes(b"PK")
    written(folder, 9, (0, 99))  # of another federation
    payload = payload_of(write_report([folder]))
    for name, traces in (
        ("transferability-local", 2),
        ("transferability-global", 2),
        ("transferability-scatter", 2),
    ):
        figure = payload["figures"][name]
        assert [frame["label"] for frame in figure["frames"]] == [
            f"round {round}, {words}"
            for round in (1, 3)
            for words in ("−distance of mean predictions", "cosine of shifts")
        ]
        for frame in figure["frames"]:
            assert len(frame["data"]) == traces
            Figure(data=frame["data"], layout=figure["layout"])
    first = payload["figures"]["transferability-global"]["frames"][0]["data"]
    assert first[0]["z"][1][1] is None and first[1]["z"][1][1] is not None
    assert len(payload["figures"]["transferability-global"]["rows"]) == 2 * 2 * 9
    assert len(payload["tables"]["transferability-quality"]["rows"]) == 2 * 2 * 2


def test_the_table_shows_the_quality_of_each_predictor(make_run, payload_of):
    folder = make_run(clients=4)
    gain = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 0, 3], [3, 2, 1, 0.0]])
    written(folder, 1, (0, 1, 2, 3), gain=gain, shift=gain, agreement=-gain)
    rows = payload_of(write_report([folder]))["tables"]["transferability-quality"]["rows"]
    found = {(row[1], row[2]): row[3:] for row in rows}
    assert found["cosine of shifts", "local test accuracy"] == [1.0, 4, 100.0, pytest.approx(100 / 3)]
    assert found["agreement", "global test accuracy"] == [-1.0, 4, 0.0, pytest.approx(100 / 3)]


@pytest.mark.parametrize("clients", [(0,), (0, 1)])
def test_too_few_clients_give_a_map_without_correlations(make_run, payload_of, clients):
    folder = make_run(clients=4)
    size = (len(clients), len(clients))
    written(folder, 1, clients, gain=np.full(size, np.nan), shift=np.ones(size))
    payload = payload_of(write_report([folder]))
    assert payload["figures"]["transferability-global"]["frames"] == []
    assert {row[3] for row in payload["tables"]["transferability-quality"]["rows"]} == {"–"}


def test_complementary_knowledge_is_shown_by_class(make_run, payload_of):
    folder = make_run(clients=3)
    by_class = np.array([[[0, 0], [0.5, 0.25]], [[0.25, np.nan], [0, 0]]])
    rate = np.array([[np.nan, 0.5], [1.0, np.nan]])
    write_transfer_map(folder, TransferMap(2, (0, 2), rate, rate, {}, by_class, rate))
    payload = payload_of(write_report([folder]))
    figure = payload["figures"]["complement-by-class"]
    assert figure["rows"] == [[2, 0, "zero", 50], [2, 0, "one", 25], [2, 2, "zero", 25], [2, 2, "one", None]]
    assert figure["data"][0]["z"] == [[50, 25], [25, None]]
    assert payload["figures"]["transfer-rate"]["data"][0]["z"] == [[None, 50], [100, None]]
    for name in ("complement-by-class", "transfer-rate"):
        Figure(data=payload["figures"][name]["data"], layout=payload["figures"][name]["layout"])
