"""The scripts for clusters say what SLURM, KubeRay and fedkd understand."""

from __future__ import annotations

import os
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.plan.load import parse_plan

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "cluster"

DOCUMENTED: dict[str, set[str]] = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("activeDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "submissionMode", "suspend"),
    },
    "RayClusterSpec": {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"},
    "HeadGroupSpec": {"rayStartParams", "serviceType", "template"},
    "WorkerGroupSpec": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"),
    },
}
"""Fields of KubeRay's `ray.io/v1`, of which an unknown one is refused, or pruned without a word."""


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    documents = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def test_every_kuberay_field_is_documented(parts):
    job = parts["RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    found = {
        "RayJob": [job],
        "RayJobSpec": [job["spec"]],
        "RayClusterSpec": [cluster],
        "HeadGroupSpec": [cluster["headGroupSpec"]],
        "WorkerGroupSpec": cluster["workerGroupSpecs"],
    }
    assert job["apiVersion"] == "ray.io/v1"
    for kind, tables in found.items():
        assert all(table.keys() <= DOCUMENTED[kind] for table in tables), kind


def test_the_cluster_size_is_fixed_and_volumes_exist(parts):
    cluster = parts["RayJob"]["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_scenario_and_script_are_valid(parts):
    files = parts["ConfigMap"]["data"]
    plan = parse_plan(tomllib.loads(files["scenario.toml"]))
    assert (plan.scenario.engine.kind, plan.scenario.engine.address) == ("ray", "auto")
    subprocess.run(["sh", "-n"], input=files["run.sh"], text=True, check=True)


@pytest.mark.parametrize("resumed", [False, True])
def test_slurm_starts_the_same_command_on_every_node(resumed, tmp_path):
    """With commands in place of SLURM's that say what they are called with."""
    for name, script in {
        "srun": 'printf "%s\\n" "$@" "token:${#RAY_AUTH_TOKEN}" "$RAY_AUTH_MODE" "$RAY_TMPDIR"\n',
        "scontrol": "echo node7\necho node8\n",
        "python": "echo 0123456789\n",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / name).chmod(stat.S_IRWXU)
    out = tmp_path / "out"
    if resumed:
        out.mkdir()
        (out / "scenario.toml").touch()
    (tmp_path / "mkdir").write_text("#!/bin/sh\n")
    (tmp_path / "mkdir").chmod(stat.S_IRWXU)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        **{"SLURM_JOB_ID": "20123", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"},
        **{"SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "2"},
    }
    done = subprocess.run(
        ["bash", str(FOLDER / "slurm.sh"), "a scenario.toml", str(out), "seed=2"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *words, token, mode, place = done.stdout.splitlines()
    assert words[: words.index("ray")] == [
        *("--nodes=2", "--ntasks=2", "--cpus-per-task=8", "--kill-on-bad-exit=0", "--no-kill"),
    ]
    run = words.index("--")
    assert words[words.index("ray") : run] == [
        *("ray", "symmetric-run", "--address", "node7:20123", "--min-nodes", "2"),
        *("--num-cpus=8", "--include-dashboard=false", "--num-gpus=2"),
    ]
    started = ["fedkd", "run", "a scenario.toml", "--out", str(out), "--set", "engine.kind=ray"]
    command = ["fedkd", "resume", str(out)] if resumed else [*started, "engine.address=auto", "seed=2"]
    assert words[run + 1 :] == ["env", "RAY_ADDRESS=node7:20123", *command]
    assert (token, mode, place) == ("token:10", "token", "/tmp/ray-20123")
