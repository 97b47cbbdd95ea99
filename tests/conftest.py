"""Fixtures shared by all tests, and the environment that every test runs in."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fedkd.data.dataset import Dataset

# Before torch, flwr or ray are imported, which read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

# Whoever runs the suite in the background, or under nohup, has it inherit that these are ignored, as have the
# programs it starts; what is tested is what they do by themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The suite draws the same examples each time; scripts/test-processors.sh takes the random profile.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

REPOSITORY = Path(__file__).resolve().parent.parent
# pytest's importlib mode leaves both off the path.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "support")]


class NoSharedRay(Exception):
    """The Ray that tests share did not start: the first of them fails, the others are skipped."""

    told = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if call.excinfo is not None and call.excinfo.errisinstance(NoSharedRay):
        if NoSharedRay.told:
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {call.excinfo.value}")
        NoSharedRay.told = True
    return report


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over thousands of collected tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Begin every test with the same global generators, so that it does not depend on what ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Have no test wait for the disk: processes are killed here, power does not fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """End the module's runs and benches without a page and without the figures of streams and graphs."""
    from reports import undrawn, unpaged

    with unpaged(), undrawn():
        yield


@pytest.fixture(scope="module")
def no_rendering() -> Iterator[None]:
    """Lay the module's figures out and leave their files empty."""
    from reports import unrendered

    with unrendered():
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; the test is skipped where there is none."""
    named = os.environ.get("FEDKD_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "needs mnist, fashion-mnist or cifar10-jpeg: set FEDKD_DATA to the folder that holds them"
        )
    return folder.resolve()


@pytest.fixture(scope="session")
def small_data_root(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of the real data sets, and drawn ones in the place of cifar10-jpeg's.

    All of them take long to decode, to convert and to normalise.
    """
    import io
    import struct
    import tarfile

    from PIL import Image

    from fedkd.data.sources.idx import read_idx

    folder = tmp_path_factory.mktemp("data")
    for name in ("mnist", "fashion-mnist"):
        (folder / name).mkdir()
        for path in (data_root / name).glob("*-ubyte.gz"):
            number = 20_000 if path.name.startswith("train") else 5_000
            array = read_idx(path)[:number]
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / name / path.stem).write_bytes(header + array.tobytes())
    (folder / "cifar10-jpeg").mkdir()
    with tarfile.open(folder / "cifar10-jpeg" / "cifar10-jpeg-q75.tar.xz", "w:xz", preset=0) as archive:
        for split, each in (("train", 360), ("test", 100)):
            for index in range(10 * each):
                colour = (25 * (index % 10), index // 10 % 256, index // 2560 * 25)
                file = io.BytesIO()
                Image.new("RGB", (32, 32), colour).save(file, "jpeg")
                member = tarfile.TarInfo(f"{split}/class{index % 10}/{index // 10:04}.jpg")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)
    (folder / "vader").mkdir()
    for path in (data_root / "vader").glob("*.tsv"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "vader" / path.name).write_text("".join(lines[:2601]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def load_once() -> Callable[..., Dataset]:
    """A `load_dataset` that remembers the built-in data sets, which take long to unpack."""
    from fedkd.data.registry import DATASETS, load_dataset
    from fedkd.data.request import silent

    read: dict[str, Dataset] = {}

    def load(request: Any, **keys: str) -> Dataset:
        if request.name not in DATASETS.builtin:
            return load_dataset(request, **keys)
        key = repr(replace(request, progress=silent))
        if key not in read:
            read[key] = load_dataset(request, **keys)
        return read[key]

    return load


@pytest.fixture
def read_once(load_once, tmp_path_factory, monkeypatch) -> None:
    """Have all scenarios of these tests share the data sets that are read, and spare the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("fedkd.data.scenario_sources.load_dataset", load_once)


@pytest.fixture
def digits_scenario() -> dict[str, Any]:
    """The tables of a scenario that runs in seconds: four small MLPs on the embedded digits, inline."""
    return digits_tables()


def digits_tables() -> dict[str, Any]:
    return {
        "name": "digits-test",
        "seed": 7,
        "rounds": 2,
        "data": {
            "dataset": "digits",
            "clients": 4,
            "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 100},
            "transfer": {"source": "holdout", "size": 60},
        },
        "clients": [{"model": "mlp"}],
        "training": {"lr": 0.01, "batch_size": 20},
        "fusion": {"strategy": "knfu"},
        "engine": {"kind": "inline"},
    }


@pytest.fixture(scope="session")
def make_digits_scenario() -> Callable[[], dict[str, Any]]:
    """Return `digits_scenario` anew, for what a whole module shares."""
    return digits_tables


@pytest.fixture
def digits_toml(digits_scenario: dict[str, Any], tmp_path: Path) -> Path:
    """`digits_scenario` as a file, ``digits.toml`` in the test's own folder."""
    import tomli_w

    path = tmp_path / "digits.toml"
    path.write_text(tomli_w.dumps(digits_scenario), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for all tests that need it: two CPUs, and two GPUs that exist only on paper."""
    import logging

    import ray

    from fedkd.engine.compat import minimal_ray
    from fedkd.engine.ray.cluster import start_with_retry
    from fedkd.errors import EngineLost

    def start() -> None:
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )

    try:
        with minimal_ray():
            start_with_retry(start)
    except EngineLost as error:
        raise NoSharedRay(str(error)) from error
    yield
    ray.shutdown()
