"""Folders of a scenario's data for clients and server, and the Flower app of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import tomli_w

from fedkd import __version__
from fedkd.clients import build_checked_models, with_test_sample
from fedkd.data import Share, load_data, share_of_client, share_of_server, write_share
from fedkd.errors import UserError
from fedkd.plan import Plan
from fedkd.scenario import dump_toml
from fedkd.storage import expand_path
from fedkd.tracking import SCENARIO_FILE

SERVER = "server"


def client_folder(client: int) -> str:
    return f"client-{client}"


def check_deployable(plan: Plan) -> None:
    """Refuse a scenario that can only be simulated."""
    scenario = plan.scenario
    refusals = {
        "fusion.strategy": plan.capabilities.pools
        and f"'{scenario.fusion.strategy}' trains on the samples of all clients, which nodes never share",
        "faults.poisoned": scenario.faults.poisoned > 0 and "must be 0, as attacks are simulated only",
        "faults.timeout": scenario.faults.timeout is not None
        and "must be left out, as the server cannot interrupt a late node; set reply-within in the"
        " run-config instead",
        "topology.graph": plan.graph is not None
        and f"must be 'star', got '{scenario.topology.graph}': deployed nodes exchange messages with a"
        " SuperLink only",
        "training.executor": scenario.training.executor == "vectorised"
        and "must be 'loop' or 'auto', as every node trains one client",
    }
    for key, message in refusals.items():
        if message:
            raise UserError(message, key=key)


def write_partition(plan: Plan, out: Path, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Write every participant's share into ``server`` and ``client-0`` …; return the absolute folder.

    The folder appears when all shares are complete.

    Raises:
        UserError: The scenario can only be simulated, data are missing, or the folder is not empty.
    """
    check_deployable(plan)
    out = expand_path(out, key="--out").absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another folder, or remove it", key="--out")
    data = load_data(plan.scenario, tell)
    build_checked_models(plan, data)
    plan = with_test_sample(plan, data)
    unfinished = out.with_name(f".{out.name}.unfinished")

    def write(name: str, share: Share) -> None:
        (unfinished / name).mkdir(parents=True, mode=0o700)
        write_share(unfinished / name, share)
        (unfinished / name / SCENARIO_FILE).write_text(dump_toml(plan.scenario, out / name), encoding="utf-8")

    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        labels = "transfer_labels" in plan.capabilities.needs
        pretrains = plan.capabilities.pretrain_epochs > 0
        write(SERVER, share_of_server(data, transfer_labels=labels))
        for client in range(plan.scenario.data.clients):
            write(client_folder(client), share_of_client(data, client, public_labels=pretrains))
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}", key="--out") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def write_app(folder: Path) -> None:
    """Write the Flower app into a new folder: it names fedkd's two apps, without code.

    `flwr run` sends it to the nodes, so every node runs its owner's fedkd.
    """
    from fedkd.federation import DATA_KEY, WAIT_DEFAULTS

    folder.mkdir(parents=True)
    flower = {
        "publisher": "fedkd",
        "components": {
            "serverapp": "fedkd.federation.apps.server_app:server_app",
            "clientapp": "fedkd.federation.apps.client_app:client_app",
        },
        "config": {DATA_KEY: "", "out": "", **WAIT_DEFAULTS},
    }
    project = {
        "name": "fedkd-federation",
        "version": __version__,
        "description": "A federation of fedkd's clients, each with its own data",
        "license": "Apache-2.0",
        "dependencies": [],
    }
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": flower}}})
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
