"""Share folders hold the data of one client."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deployed_nodes import SMALL, Deployed
from safetensors.numpy import load_file, save_file

from fedkd.cli.main import main
from fedkd.data.dataset import Dataset
from fedkd.data.federated import FederatedData
from fedkd.data.load import load_data
from fedkd.data.normalise import measure
from fedkd.data.shares.share import share_of_client, share_of_samples
from fedkd.data.shares.share_file import ARRAYS, SHARE_MANIFEST, read_share, write_share
from fedkd.deployment.partition import write_partition
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan


def of(found: Deployed, client: int) -> FederatedData:
    data = read_share(found.of_client(client)).data
    assert isinstance(data, FederatedData)
    return data


def test_a_share_equals_the_simulated_data_of_its_client(dealt):
    found = dealt()
    whole = load_data(found.plan.scenario)
    for client in range(found.clients):
        own, dealt_to = of(found, client).client(client), whole.client(client)
        for name in ("train_x", "train_y", "test_x", "test_y", "transfer_x", "global_x", "global_y"):
            ours, theirs = getattr(own, name), getattr(dealt_to, name)
            assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), name
            assert ours.flags.aligned
        assert of(found, client).class_names == whole.class_names
        assert of(found, client).statistics.mean.tobytes() == whole.statistics.mean.tobytes()


def test_a_share_holds_no_sample_of_another_client(dealt):
    found = dealt()
    whole = load_data(found.plan.scenario)
    private = {n: {x.tobytes() for x in whole.x[slice(*whole.train_bounds[n])]} for n in range(found.clients)}
    for client in range(found.clients):
        content = (found.of_client(client) / ARRAYS).read_bytes()
        assert all(sample in content for sample in private[client])
        assert not any(sample in content for n in private if n != client for sample in private[n])
    server = (found.folder / "server" / ARRAYS).read_bytes()
    assert not any(sample in server for n in private for sample in private[n])
    labels = {name for name in load_file(found.folder / "server" / ARRAYS) if "_y" in name}
    assert labels == {"0/test_y"}, "of the transfer set it has none"
    assert of(found, 0).client(1).train_x.shape == (0, 1, 8, 8)


def test_only_the_owner_can_read_the_samples(dealt):
    found = dealt()
    for folder in (found.folder / "server", *map(found.of_client, range(found.clients))):
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / ARRAYS)]
        assert modes == [0o700, 0o600]


def test_the_server_share_holds_the_labels_its_strategy_needs(dealt):
    found = dealt(fusion={"strategy": "kta"})
    assert "0/transfer_y" in load_file(found.folder / "server" / ARRAYS)
    assert "0/transfer_y" not in load_file(found.of_client(0) / ARRAYS)


# What is wrong with a folder ------------------------------------------------------------------------------


@pytest.fixture
def folder(dealt, tmp_path) -> Path:
    """A folder of client 0 that may be spoiled."""
    path = tmp_path / "client"
    path.mkdir()
    for name in (SHARE_MANIFEST, ARRAYS):
        (path / name).write_bytes((dealt().of_client(0) / name).read_bytes())
    return path


def edited(folder: Path, change: Callable[[dict], object]) -> None:
    said = json.loads((folder / SHARE_MANIFEST).read_text())
    change(said)
    del said["digest"]  # as a share that an earlier release wrote
    (folder / SHARE_MANIFEST).write_text(json.dumps(said))


def resaved(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the arrays, and have the manifest speak of the new file."""
    import hashlib

    arrays = load_file(folder / ARRAYS)
    change(arrays)
    save_file(arrays, folder / ARRAYS)
    digest = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    edited(folder, lambda said: said.update(arrays=digest))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (
        lambda f: (f / SHARE_MANIFEST).unlink(),
        "lacks share.json; `fedkd partition`",
    ),
    "no arrays": (lambda f: (f / ARRAYS).unlink(), "cannot be read: No such file"),
    "another name of a class": (
        lambda f: (f / SHARE_MANIFEST).write_text((f / SHARE_MANIFEST).read_text().replace('"9"', '"8"')),
        "share.json: is damaged: its contents differ from its checksum",
    ),
    "no JSON": (lambda f: (f / SHARE_MANIFEST).write_text("{"), "is not valid JSON"),
    "another format": (lambda f: edited(f, lambda s: s.update(format=2)), "format: Input should be 1"),
    "unknown key": (lambda f: edited(f, lambda s: s.update(pickle=1)), "pickle: Extra inputs"),
    "client out of range": (lambda f: edited(f, lambda s: s.update(client=3)), "client: must be below 3"),
    "cut short": (
        lambda f: (f / ARRAYS).write_bytes((f / ARRAYS).read_bytes()[:-9]),
        "does not match share.json: it is damaged",
    ),
    "counts": (
        lambda f: edited(f, lambda s: s["parts"][0].update(test=9)),
        r"must have 32 \+ 9 samples, got",
    ),
    "a missing array": (
        lambda f: resaved(f, lambda a: a.pop("0/transfer_x")),
        "array 0/transfer_x is missing",
    ),
    "shape": (
        lambda f: resaved(f, lambda a: a.update({"0/x": np.zeros((40, 8), np.float32)})),
        r"0/x must be float32 or int64 samples \[1, 8, 8\], got float32 \[40, 8\]",
    ),
    "not finite": (lambda f: resaved(f, lambda a: a["0/x"].fill(np.nan)), "0/x must be finite"),
    "labels": (lambda f: resaved(f, lambda a: a["0/y"].fill(10)), r"0/y must be in 0..9, got 10 to 10"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_share_folder_gives_one_line(folder, what):
    spoil, told = WRONG[what]
    spoil(folder)
    with pytest.raises(UserError, match=told) as refused:
        read_share(folder)
    assert str(folder) in str(refused.value)


# Dealing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (
            {"fusion": {"strategy": "centralized"}},
            "fusion.strategy: 'centralized' trains on the samples of all clients",
        ),
        ({"faults": {"poisoned": 0.3}}, "faults.poisoned: must be 0, as attacks are simulated only"),
        ({"topology": {"graph": "ring"}}, "topology.graph: must be 'star', got 'ring': deployed nodes"),
        ({"training": {"executor": "vectorised"}}, "training.executor: must be 'loop' or 'auto', as every"),
    ],
)
def test_simulation_only_scenarios_are_refused(tmp_path, tables, told):
    clients = [{"model": "mlp", "args": {"hidden": [9]}}]
    with pytest.raises(UserError, match=told):
        write_partition(parse_plan(SMALL | {"clients": clients} | tables), tmp_path / "dealt")
    assert not list(tmp_path.iterdir())


def test_a_failed_partition_leaves_no_files(tmp_path, monkeypatch):
    def full(folder, share):
        (folder / ARRAYS).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedkd.deployment.partition.write_share", full)
    with pytest.raises(UserError, match=r"--out: cannot write to .*: No space left on device"):
        write_partition(parse_plan(SMALL), tmp_path / "dealt")
    assert not list(tmp_path.iterdir())


def test_the_partition_command_writes_all_shares(tmp_path, capsys):
    scenario = tmp_path / "scenario.toml"
    scenario.write_text("[data]\nclients = 2\n[data.partition]\nsamples_per_client = 20\n")
    words = ["partition", str(scenario), "--set", "data.transfer.size=10", "--out", str(tmp_path / "dealt")]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "dealt").iterdir()} == {"server", "client-0", "client-1"}
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == f"2 clients and the server  {tmp_path / 'dealt'}\n"
    told = f"error: --out: {tmp_path / 'dealt'} exists already; choose another folder, or remove it\n"
    assert said.err == told


# Samples of one's own -------------------------------------------------------------------------------------


def test_a_client_may_bring_its_own_samples(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(3.0, 2.0, (20, 4)).astype(np.float32), np.arange(20) % 2
    own = Dataset("mine", ("no", "yes"), x, y, x[:6], y[:6])
    scenario = parse_plan(SMALL).scenario
    share = share_of_samples(scenario, 2, own, measure(x), x[:5])
    write_share(tmp_path, share)
    back = read_share(tmp_path)
    assert (back.client, back.owner) == (2, "client 2")
    found = back.data.client(2)
    scaled = (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    assert sorted(found.train_x[:, 0].tolist() + found.test_x[:, 0].tolist()) == pytest.approx(
        sorted(scaled[:, 0]), abs=1e-5
    )
    assert (len(found.train_y), len(found.test_y)) == (16, 4)
    np.testing.assert_allclose(found.transfer_x, scaled[:5], atol=1e-5)
    assert back.common_digest() == share.common_digest()
    other = share_of_samples(scenario, 0, own, measure(x), x[1:6])
    assert other.common_digest() != share.common_digest(), "another transfer set"


def test_a_share_needs_samples(tmp_path):
    x, y = np.zeros((1, 4), np.float32), np.zeros(1, np.int64)
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        share_of_samples(parse_plan(SMALL).scenario, 0, Dataset("m", ("a",), x, y, x, y), measure(x), x)


def test_cutting_a_share_leaves_the_data_unchanged(dealt):
    data = load_data(dealt().plan.scenario)
    before = data.x.tobytes()
    share_of_client(data, 1)
    assert data.x.tobytes() == before
