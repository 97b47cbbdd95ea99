from __future__ import annotations

import json

import numpy as np
import pytest

from fedkd.errors import UserError
from fedkd.storage.atomic import write_json_atomically
from fedkd.tracking.recorder import Recorder, read_metrics, read_timings


def test_a_metric_line_has_the_documented_format(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.metric("accuracy", 0.871, round=3, client=4, split="local")
        recorder.metric("accuracy", 0.5, round=3, split="global", task=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"round": 3, "client": 4, "task": null, "split": "local", "metric": "accuracy", "value": 0.871}\n'
        b'{"round": 3, "client": null, "task": 2, "split": "global", "metric": "accuracy", "value": 0.5}\n'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.30000000000000004"),
        (np.float32(0.1), "0.10000000149011612"),
        (np.float64(1e-9), "1e-09"),
        (7, "7"),
        (np.int64(7), "7"),
        (1.0, "1.0"),
        (float("nan"), "null"),
        (float("-inf"), "null"),
        (np.float32("inf"), "null"),
        (None, "null"),
    ],
)
def test_values_are_exact_and_valid_json(tmp_path, value, text):
    with Recorder(tmp_path) as recorder:
        recorder.metric("loss", value, round=np.int64(1), client=np.int64(0), split="train")
    assert (tmp_path / "metrics.jsonl").read_text() == (
        f'{{"round": 1, "client": 0, "task": null, "split": "train", "metric": "loss", "value": {text}}}\n'
    )


def test_nothing_is_on_disk_before_flush_and_offsets_are_bytes(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.metric("accuracy", 0.5, round=1, split="local")
    recorder.timing(round=1, phase="train", seconds=0.25, device="cpu", nan=float("nan"))
    assert recorder.offsets() == {"metrics.jsonl": 0, "timings.jsonl": 0}
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    recorder.flush()
    sizes = {name: (tmp_path / name).stat().st_size for name in ("metrics.jsonl", "timings.jsonl")}
    assert recorder.offsets() == sizes
    assert min(sizes.values()) > 0
    recorder.close()
    recorder.close()
    assert read_timings(tmp_path) == [
        {"round": 1, "phase": "train", "seconds": 0.25, "device": "cpu", "nan": None}
    ]


def _record_round(recorder, round):
    for client in range(3):
        recorder.metric("accuracy", 0.1 * round + client / 7, round=round, client=client, split="local")
    recorder.timing(round=round, seconds=0.5)
    recorder.flush()


@pytest.mark.parametrize("leftover", [b"", b'{"round": 3, "cli'])
def test_a_resumed_run_has_the_same_bytes_as_an_uninterrupted_one(tmp_path, leftover):
    with Recorder(tmp_path / "whole") as recorder:
        for round in (1, 2, 3):
            _record_round(recorder, round)

    killed = Recorder(tmp_path / "killed")
    _record_round(killed, 1)
    checkpoint = killed.offsets()
    _record_round(killed, 2)
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as file:
        file.write(leftover)
    with Recorder(tmp_path / "killed", offsets=checkpoint) as resumed:
        assert resumed.offsets() == checkpoint
        for round in (2, 3):
            _record_round(resumed, round)

    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_shorter_than_its_offset_is_refused_and_nothing_is_cut(tmp_path):
    with Recorder(tmp_path) as recorder:
        _record_round(recorder, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError, match=r"timings\.jsonl: has \d+ bytes, but the checkpoint needs 1000"
    ) as caught:
        Recorder(tmp_path, offsets={"metrics.jsonl": 10, "timings.jsonl": 1000})
    assert caught.value.exit_status == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_fresh_recorder_starts_empty(tmp_path):
    for _ in range(2):
        with Recorder(tmp_path / "new" / "folder") as recorder:
            _record_round(recorder, 1)
    assert len(read_metrics(tmp_path / "new" / "folder")) == 3


def test_readers_skip_only_a_half_written_last_line(tmp_path):
    with Recorder(tmp_path) as recorder:
        _record_round(recorder, 1)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    expected = [json.loads(line) for line in whole.splitlines()]
    for cut in (1, 20, len(whole.splitlines()[0])):
        path.write_bytes(whole + whole[:cut])
        rows = read_metrics(tmp_path)
        assert rows[:3] == expected
        assert len(rows) == 3 + (cut == len(whole.splitlines()[0]))
    path.write_bytes(b"{broken\n" + whole)
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        read_metrics(tmp_path)


def test_a_missing_run_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="is this a run folder"):
        read_metrics(tmp_path / "nowhere")


def test_summary_is_readable_json(tmp_path):
    write_json_atomically(
        tmp_path / "summary.json",
        {"name": "γ-run", "final": {"accuracy_local": {"mean": 0.5}}, "continual": None},
    )
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {
        "name": "γ-run",
        "final": {"accuracy_local": {"mean": 0.5}},
        "continual": None,
    }


def test_a_resumed_run_keeps_records_to_the_bit(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.metric("accuracy", 0.5, round=1, split="local")
        recorder.flush()
        kept = {"offsets": recorder.offsets(), "digests": recorder.digests()}
        recorder.metric("accuracy", 0.6, round=2, split="local")
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text.replace("0.6", "0.7"))  # is cut off
    Recorder(tmp_path, **kept).close()
    (tmp_path / "metrics.jsonl").write_text(text.replace("0.5", "0.7"))
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: its first .* bytes differ from those at the checkpoint"
    ):
        Recorder(tmp_path, **kept)
    assert "0.6" in (tmp_path / "metrics.jsonl").read_text(), "a refused resume leaves the folder as it was"
