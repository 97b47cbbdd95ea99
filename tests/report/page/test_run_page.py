from __future__ import annotations

import json

import numpy as np
import pytest
from reports import undrawn

import fedkd
from fedkd.cli.main import main
from fedkd.continual.metrics.outcome import ProtocolOutcome, StreamOutcome
from fedkd.continual.task_history import TaskHistory
from fedkd.errors import UserError
from fedkd.report.page.federation import effect_figures
from fedkd.report.page.figure import bar, heat_map
from fedkd.report.page.page import library
from fedkd.report.page.record import Series, read_record
from fedkd.report.page.stream import forgotten
from fedkd.report.page.write import write_final_report, write_report
from fedkd.tracking import write_links
from fedkd.tracking.recorder import Recorder

OF_A_FEDERATION = {
    *(
        "accuracy-global",
        "fusion-gain",
        "fidelity",
        "effective-neighbours",
        "loss",
        "labels",
        "bytes",
        "time",
    ),
}


def valid(payload) -> None:
    """Check that Plotly knows all that it is told to draw."""
    from plotly.graph_objects import Figure

    for figure in payload["figures"].values():
        frames = figure["frames"] or [{"data": figure["data"]}]
        for frame in frames:
            assert frame["data"]
            Figure(data=frame["data"], layout=figure["layout"])


def test_a_run_on_a_graph_shows_its_links(make_run, payload_of):
    folder = make_run(clients=3, changes={"topology": {"graph": "ring"}})
    heard = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    for round in (1, 2):
        write_links(folder, round, [0, 1, 2], heard, heard * 500)
    payload = payload_of(write_report([folder]))
    assert payload["figures"]["links"]["rows"] == [[0, 1, 2, 1000], [1, 0, 2, 1000]]
    valid(payload)


def test_the_topology_is_in_title_and_tiles(make_run):
    for topology, told in (
        ({"graph": "ring"}, "ring"),
        ({"graph": "k_regular"}, "k-regular (k = 4)"),
        ({"graph": "file", "path": "/somewhere/mine.json"}, "file (mine.json)"),
    ):
        text = write_report(
            [make_run(topology["graph"], clients=6, changes={"topology": topology})]
        ).read_text()
        assert f"<h1>made-up, seed 0, {told}</h1>" in text
        assert f"<div><dt>topology (no server)</dt><dd>{told}</dd></div>" in text
    assert "topology (no server)" not in write_report([make_run("star")]).read_text()


def test_a_constant_has_no_colour_scale(make_run, payload_of):
    folder = make_run(clients=3, changes={"topology": {"graph": "ring"}})
    heard = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    write_links(folder, 1, [0, 1, 2], heard, heard * 500)
    path = write_report([folder])
    (trace,) = payload_of(path)["figures"]["links"]["data"]
    assert not trace["showscale"] and "Every link carried 0.5 kB." in path.read_text()
    assert heat_map(np.array([[1.0, 2.0]]), "ab", "c")["showscale"]


def test_a_run_without_fusion_does_not_mention_it(make_run, payload_of):
    path = write_report([make_run(fused=False, changes={"fusion": {"strategy": "local"}})])
    payload, text = payload_of(path), path.read_text()
    assert "<h2>Local training</h2>" in text and "<h2>Fusion</h2>" not in text
    figure = payload["figures"]["accuracy-global"]
    said = [*figure["columns"], *(trace["name"] for trace in figure["data"])]
    said += payload["tables"]["clients"]["columns"]
    assert not [words for words in said if "fusion" in words]
    assert said.count("mean") == 2 and "global accuracy (%)" in said and "after fusion" not in text


def test_the_mean_is_highlighted(make_run, payload_of):
    data = payload_of(write_report([make_run()]))["figures"]["accuracy-global"]["data"]
    *others, mean = data
    lines = [trace for trace in others if trace.get("fill") is None]
    assert len(lines) == 5 and mean["name"] == "after fusion, mean"
    assert all(2 * trace["line"]["width"] <= mean["line"]["width"] for trace in lines)
    ranks = [trace.get("legendrank", 1000) for trace in data]
    assert ranks.index(min(ranks)) == len(data) - 1


def test_zeros_are_drawn_and_missing_values_are_not():
    made = bar("forgetting", "abc", [0.0, 2.5, float("nan")], "#0072B2")
    assert made["y"] == [0.0, 2.5, None] and made["marker"]["line"]["width"] == [4, 0, 0]


@pytest.mark.parametrize(("losses", "kind"), [((90.0, 2.0, 1.0, 0.9), "log"), ((2.0, 1.5, 0.5, 0.08), None)])
def test_widely_spread_losses_have_a_logarithmic_axis(make_run, losses, kind):
    record = read_record(make_run())
    series = Series(means=dict(enumerate(losses, 1)), clients={r: {0: v} for r, v in enumerate(losses, 1)})
    record.__dict__["_series"] = {("train", "loss"): series}
    (figure,) = effect_figures(record)
    assert figure.layout["yaxis"].get("type") == kind


def test_a_run_page_has_figures_and_their_numbers(make_run, payload_of):
    folder = make_run()
    path = write_report([folder])
    assert path == folder / "report.html"
    payload = payload_of(path)
    assert set(payload["figures"]) == OF_A_FEDERATION
    valid(payload)
    figure, record = payload["figures"]["accuracy-global"], read_record(folder)
    series = record.series("global", "accuracy")
    table = {row[0]: dict(zip(figure["columns"], row, strict=True)) for row in figure["rows"]}
    for round in (1, 2, 3):
        values = [series.clients[round][client] for client in range(4)]
        assert table[round]["after fusion, mean"] == series.means[round]
        assert table[round]["lowest to highest client, low"] == min(values)
        assert table[round]["lowest to highest client, high"] == max(values)
        assert table[round]["mlp (2)"] == pytest.approx(np.mean(values[::2]))
    ends = series.clients[3]
    worst, best = min(ends, key=ends.get), max(ends, key=ends.get)
    names = [trace["name"] for trace in figure["data"]]
    assert f"worst: {record.client_name(worst)}" in names
    assert f"best: {record.client_name(best)}" in names
    assert {"mlp (2)", "cnn (2)", "before fusion, mean", "after fusion, mean"} < set(names)


def test_neighbours_and_their_weights_are_shown_for_every_round(make_run, payload_of):
    folder = make_run()
    view = payload_of(write_report([folder]))["neighbours"]
    assert [round["round"] for round in view["rounds"]] == [1, 2, 3]
    assert view["labels"][1] == "client 1 (cnn)"
    with np.load(folder / "fusion" / "round-00002.npz") as file:
        np.testing.assert_allclose(view["rounds"][1]["w"], file["weights"], rtol=1e-2)
        np.testing.assert_allclose(view["rounds"][1]["l"], file["left_out"], rtol=1e-2)


def test_traffic_and_time_are_shown(make_run, payload_of):
    payload = payload_of(write_report([make_run()]))["figures"]
    assert payload["bytes"]["rows"] == [[round, 1000, 2000, 0] for round in (1, 2, 3)]
    assert payload["time"]["rows"][0] == [1, "train", 1.5]
    assert [row[1:] for row in payload["labels"]["rows"][:2]] == [[0, "zero", 0], [0, "one", 5]]
    assert payload["labels"]["layout"]["legend"]["title"]["text"].strip() == "class"


def test_accuracy_is_shown_over_simulated_time(make_run, payload_of):
    folder = make_run(changes={"clock": {}})
    with (folder / "metrics.jsonl").open("a") as file:
        for round in (1, 2, 3):
            row = {"round": round, "client": None, "task": None, "split": "train"}
            file.write(json.dumps({**row, "metric": "virtual_seconds", "value": 1.5 * round**2}) + "\n")
    figure = payload_of(write_report([folder]))["figures"]["accuracy-time"]
    assert figure["columns"] == [
        "round",
        "virtual_seconds",
        "accuracy_global",
        "accuracy_before_fusion_global",
    ]
    assert [row[1] for row in figure["rows"]] == [1.5, 6.0, 13.5]
    assert all(trace["x"] == [1.5, 6.0, 13.5] for trace in figure["data"])


def test_thousands_of_clients_are_summarised(make_run, payload_of):
    path = write_report([make_run(clients=1000, rounds=2)])
    payload = payload_of(path)
    assert all(len(figure["data"]) <= 8 for figure in payload["figures"].values())
    assert "10th to 90th percentile" in path.read_text()
    assert path.stat().st_size - len(library().encode()) < 600_000


def test_large_architectures_show_one_representative_client(make_run, payload_of, monkeypatch):
    monkeypatch.setattr("fedkd.report.page.neighbours.MOST_CLIENTS", 3)
    folder = make_run()
    view = payload_of(write_report([folder]))["neighbours"]
    assert view["labels"] == ["mlp", "cnn"] and not view["ofClients"]
    with np.load(folder / "fusion" / "round-00003.npz") as file:
        of_mlps = file["weights"][::2]
    expected = [of_mlps[:, ::2].sum(axis=1).mean(), of_mlps[:, 1::2].sum(axis=1).mean()]
    np.testing.assert_allclose(view["rounds"][-1]["w"][0], expected, rtol=1e-2)


@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (1, 3), (2, 1)])
def test_a_minimal_run_has_a_page(clients, rounds, make_run, payload_of):
    payload = payload_of(write_report([make_run(clients=clients, rounds=rounds, models=("mlp",))]))
    valid(payload)
    assert len(payload["figures"]["accuracy-global"]["data"]) == (2 if clients == 1 else 5)
    assert (payload["neighbours"] is None) == (clients == 1)


def test_an_unfinished_run_says_so(make_run):
    text = write_report([make_run(planned=9)]).read_text()
    assert "This run is unfinished: 3 of 9 rounds are recorded." in text
    assert "unfinished" not in write_report([make_run("whole")]).read_text()


def test_a_run_that_has_just_begun_has_a_page(make_run, payload_of):
    folder = make_run(planned=5)
    for name in ("metrics.jsonl", "timings.jsonl", "clients.json"):
        (folder / name).unlink()
    (folder / "error.txt").write_text("Traceback")
    path = write_report([folder])
    assert "It failed: error.txt in its folder" in path.read_text() and not payload_of(path)["figures"]


def test_damaged_side_files_are_left_out(make_run, payload_of):
    folder = make_run()
    (folder / "clients.json").write_text('{"tasks": [{"name": 3, "classes": ["a"], "train": [[1, 2]]}]}')
    (folder / "schedule.json").write_text("[")
    (folder / "summary.json").write_bytes(b"\xff")
    (folder / "fusion" / "round-00002.npz").write_bytes(b"\x80\x04.")
    payload = payload_of(write_report([folder]))
    assert set(payload["figures"]) == OF_A_FEDERATION - {"labels"}
    assert [round["round"] for round in payload["neighbours"]["rounds"]] == [1, 3]


ROW = {"round": 3, "client": 0, "task": None, "split": "train", "metric": "loss", "value": 0.5}
ODD = ({"round": "3"}, {"client": 4}, {"client": -1}, {"task": 0.5}, {"metric": None}, {"value": [1]})


@pytest.mark.parametrize("line", ["{", "[]", '{"round": 1}', *(json.dumps(ROW | odd) for odd in ODD)])
def test_malformed_metrics_are_refused(line, make_run, capsys):
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert main(["report", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder / 'metrics.jsonl'}: line 91 is ")
    told: list[str] = []
    write_final_report(folder, told.append)
    assert told[0].startswith(f"report.html could not be written: {folder}")


def test_failed_clients_and_warnings_are_shown(make_run, payload_of):
    folder = make_run()
    offsets = {"metrics.jsonl": (folder / "metrics.jsonl").stat().st_size}
    with Recorder(folder, offsets=offsets) as recorder:
        recorder.metric("failed", 2, round=2, client=1, split="train")
        recorder.metric("failed", 2, round=2, split="train")
        recorder.warning("at_chance", round=3, client=0, task=None, accuracy=0.1, chance=0.2)
    payload = payload_of(write_report([folder]))
    assert payload["figures"]["failures"]["rows"] == [[2, 1, "failed in training", 2]]
    assert payload["tables"]["warnings"]["rows"] == [
        ["no better than the majority class", 3, 0, None, "10.0 %", "20.0 %"]
    ]
    valid(payload)


def test_names_are_escaped(make_run, payload_of):
    evil = "</script><script>alert(1)</script><a href='x'>"
    folder = make_run()
    labels = {"name": evil, "classes": [evil, "one"], "train": [[n, 5] for n in range(4)]}
    (folder / "clients.json").write_text(json.dumps({"tasks": [labels, labels | {"name": "b"}]}))
    (folder / "scenario.toml").write_text(f"# {evil}\n" + (folder / "scenario.toml").read_text())
    path = write_report([folder])
    assert "<script>alert" not in path.read_text() and "<a href='x'" not in path.read_text()
    frames = payload_of(path)["figures"]["labels"]["frames"]
    assert [frame["label"] for frame in frames] == [f"task {evil}", "task b"], "the script sets it as text"
    assert frames[0]["data"][0]["name"].startswith("&lt;/script&gt;"), "Plotly takes tags for its own"


def test_a_page_loads_nothing_from_the_network(make_run):
    folder = make_run()
    path = write_report([folder])
    text = path.read_text()
    assert path.stat().st_size < 4_000_000
    assert "default-src 'none'" in text
    for address in ("http://", "https://", "//cdn", "@import", "url("):
        assert address not in text
    assert write_report([folder]).read_text() == text


def test_only_generated_pages_are_overwritten(make_run, tmp_path, capsys):
    folder, mine = make_run(), tmp_path / "mine.html"
    assert main(["report", str(folder), "--out", str(mine)]) == 0
    assert capsys.readouterr().out == f"report  {mine}\n"
    assert write_report([folder], mine) == mine
    mine.write_text("<html>my own</html>")
    assert main(["report", str(folder), "--out", str(mine)]) == 2
    assert "is not a report of fedkd; choose another file with --out" in capsys.readouterr().err
    assert mine.read_text() == "<html>my own</html>"


def test_folders_without_runs_are_named(make_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bench" / "runs").mkdir(parents=True)
    for name, told in {
        "nowhere": "no such folder",
        "file": "is not a folder",
        "empty": "neither a run folder",
        "bench": "study.json: not found; the bench writes it once",
    }.items():
        assert main(["report", str(tmp_path / name)]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run()], tmp_path / "file" / "page.html")


def test_a_stream_run_writes_its_page(digits_scenario, tmp_path, payload_of):
    stream = {"kind": "split", "count": 2, "classes_per_task": 2}
    small = {"dataset": "digits", "clients": 2, "transfer": {"source": "holdout", "size": 10}}
    data = small | {"partition": {"scheme": "iid", "samples_per_client": 20}, "test_size": 20}
    continual = {"learner": "exssnet", "tasks": stream, "rounds_per_task": 1}
    del digits_scenario["rounds"]
    with undrawn():
        result = fedkd.run(digits_scenario | {"data": data, "continual": continual}, out=tmp_path / "run")
    payload = payload_of(tmp_path / "run" / "report.html")
    valid(payload)
    figures = payload["figures"]
    of_streams = {"forgetting", "average-accuracy", "masks", "stored", "schedule"}
    assert of_streams | {"matrix-task_incremental", "matrix-class_incremental"} <= set(figures)
    lost = {row[0]: row[2] for row in figures["forgetting"]["rows"]}
    mean = result.summary["continual"]["forgetting"]["mean"]
    assert lost[result.summary["continual"]["evaluation"]] == pytest.approx(mean)
    assert [row[0] for row in figures["masks"]["rows"]].count("free_share") == 2
    assert [frame["label"] for frame in figures["labels"]["frames"]] == ["task 0 1", "task 2 3"]
    assert {row[1] for row in figures["schedule"]["rows"]} == {0, 1}
    # The same, half-way: what is not known yet is missing.
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(r for r in rows if '"round": 2' not in r))
    (tmp_path / "run" / "summary.json").unlink()
    halfway = payload_of(write_report([tmp_path / "run"]))
    valid(halfway)
    assert "forgetting" not in halfway["figures"] and "matrix-task_incremental" in halfway["figures"]


def test_forgetting_covers_counted_clients_that_learned_the_task():
    R = np.array([[0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.3, 0.6, 0.7]])
    clients = {0: (R, R[0]), 1: (R / 2, R[0]), 2: (R / 9, R[0])}
    test = ProtocolOutcome("task_incremental", "global", R, R[0], clients, {})
    histories = (TaskHistory.of([(task, task + 1, task + 1) for task in range(3)]),) * 3
    learned = [np.array([True, True, True]), np.array([False, True, True]), np.array([True, True, True])]
    outcome = StreamOutcome(
        3, "task_incremental", (test,), {}, frozenset({0, 1}), histories, in_step=True, learned=learned
    )
    mean, number = forgotten(outcome, test)
    np.testing.assert_allclose(mean, [0.6, (0.2 + 0.1) / 2], atol=1e-12)
    assert number == [1, 2]


def test_a_part_of_the_test_set_is_in_the_caption(make_run):
    page = write_report([make_run(changes={"evaluate": 40})]).read_text()
    assert page.count("on the common test set, before the last round on 40 of its samples.") == 1
