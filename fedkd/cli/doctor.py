"""``fedkd doctor``: installed packages, devices and data sets."""

import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedkd.plugins import install_hint

MISSING = "not installed"
PACKAGES = (
    *("fedkd", "flwr", "ray", "torch", "torchvision", "numpy", "pydantic", "scikit-learn", "safetensors"),
    *("rich", "wandb"),
)
EXTRAS = {
    "report": ("matplotlib", "plotly", "jinja2", "pyarrow"),
    "table": ("pyarrow",),
    "text": ("pyarrow", "tokenizers"),
    "transformers": ("transformers", "tokenizers"),
    "hf": ("datasets", "pyarrow"),
    "partitioners": ("flwr-datasets",),
    "deployment": ("cryptography",),
    "completion": ("argcomplete",),
    "frames": ("pandas",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny",),
    "tune": ("optuna",),
}
"""Optional packages, by the extra that installs them."""
TORCHVISION_FOLDERS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}
"""Folder of torchvision for each data set that is downloaded if it is missing."""


def examine() -> Iterator[str]:
    """Yield a line per finding; a failing probe does not stop the others."""
    yield _row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        yield _row(package, _version(package))
    for extra, packages in EXTRAS.items():
        for package in packages:
            found = _version(package)
            yield _row(package, f"{found}; {install_hint(extra)}" if found == MISSING else found)
    # A container may have fewer CPUs than the machine.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield _row("cpus", f"{cpus} available to this process")
    yield _row("cuda", _guarded(_cuda))
    yield _row("ray sees", _guarded(_ray_resources))
    yield from _data_rows()
    yield from _executor_rows()


def _row(label: str, text: str) -> str:
    return f"{label:<14}{text}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package == "fedkd":
            from fedkd import __version__

            return f"{__version__} (run from its source, not installed)"
        return MISSING


def _guarded(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
        return f"no device: {_why_none(torch.version.cuda, driver)}"
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)


def _why_none(built_for: str | None, driver: bool) -> str:
    if built_for is None:
        more = "but this machine has an NVIDIA driver" if driver else "which is enough here"
        return f"torch is the CPU build, {more}"
    if driver:
        return f"torch is built for CUDA {built_for}, but the driver shows no GPU"
    return f"torch is built for CUDA {built_for}, but there is no NVIDIA driver; the CPU build is enough"


def _ray_resources() -> str:
    """Start a local Ray briefly and return the resources that it counts."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    from fedkd.engine import allowed_cpus, minimal_ray, private_ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with minimal_ray(), private_ray() as end_seclusion:
        ray.init(address="local", num_cpus=allowed_cpus(), include_dashboard=False, **quiet)
    try:
        resources = ray.cluster_resources()
    finally:
        ray.shutdown()
        end_seclusion()
    cpus, gpus, memory = (resources.get(kind, 0) for kind in ("CPU", "GPU", "object_store_memory"))
    return f"{cpus:g} CPUs, {gpus:g} GPUs, {memory / 2**30:.1f} GiB of shared memory for arrays"


def _data_rows() -> Iterator[str]:
    from fedkd.data import data_root_folder

    root = data_root_folder(None)
    origin = "$FEDKD_DATA" if os.environ.get("FEDKD_DATA") else "the user cache; set FEDKD_DATA for another"
    state = "" if root.is_dir() else ", which does not exist yet"
    yield _row("data root", f"{root} ({origin}){state}")
    yield _row("digits", "embedded")
    for name in TORCHVISION_FOLDERS:
        yield _row(name, str(find_dataset(name) or "not found: downloaded on first use"))
    if root.is_dir():
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        others = [name for name in names if name not in TORCHVISION_FOLDERS and not name.startswith(".")]
        yield _row("other data", ", ".join(others) or "none")


def find_dataset(name: str) -> Path | None:
    """Return the folder of a data set in the data root or the user cache, or None."""
    from fedkd.data import data_root_folder, user_cache_folder

    parts = (name, TORCHVISION_FOLDERS[name])
    folders = (base / part for base in (data_root_folder(None), user_cache_folder()) for part in parts)
    return next((folder for folder in folders if folder.is_dir() and any(folder.iterdir())), None)


def _executor_rows() -> Iterator[str]:
    from fedkd.clients import executor_cache_path, read_step_measurements

    measured = read_step_measurements()
    if not measured:
        yield _row("executors", 'no measurements yet (training.executor = "auto")')
        return
    yield _row("executors", f"measured, in {executor_cache_path()}:")
    for what, (loop, vectorised) in measured:
        keys = ("model", "batch_size", "vmap_size", "device")
        model, size, together, device = (what.get(key, "?") for key in keys)
        times = f"{1e3 * loop:.3g} ms per step and client in the loop, {1e3 * vectorised:.3g} vectorised"
        yield _row("", f"{model}, batches of {size}, {together} clients on {device}: {times}")
