"""Examples of the suite are the same each time; a script runs it with the kernels of several processors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "test-processors.sh"

SUITE = """
echo "suite $OPENBLAS_CORETYPE/$ATEN_CPU_CAPABILITY/$HYPOTHESIS_PROFILE $*" >> said
echo "FAILED tests/test_some.py::test_this - assert 1 < 0"
echo "======== 1 failed, 3 passed in 2.50s ========"
[ "$OPENBLAS_CORETYPE/$ATEN_CPU_CAPABILITY" != "$FAILS" ]
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the script with a suite that fails under one choice of kernels."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts" / "test.sh").write_text(SUITE, encoding="utf-8")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")

    def run(fails: str, *arguments: str) -> tuple[int, list[str], list[str]]:
        command = ["bash", tmp_path / "scripts" / "test-processors.sh", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FAILS": fails})
        said = (tmp_path / "said").read_text(encoding="utf-8").splitlines()
        return done.returncode, done.stdout.splitlines(), said

    return run


def kernels_of_this_processor() -> list[str]:
    try:
        flags = set(re.findall(r"(?m)^flags.*", Path("/proc/cpuinfo").read_text(encoding="utf-8"))[0].split())
    except (OSError, IndexError):
        flags = set()
    wide, wider = (
        {"avx2", "fma"} <= flags,
        {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= flags,
    )
    blas = ["", *["Haswell"] * wide, *["SkylakeX"] * wider]
    return sorted(f"{core}/{aten}/random" for core in blas for aten in ["", "default", *["avx2"] * wide])


def test_each_choice_runs_the_set_number_of_times_with_its_own_seeds(run):
    code, lines, said = run("no/ne", "2", "-k", "knfu or fd")
    choices = kernels_of_this_processor()
    assert code == 0 and len(lines) == len(said) == 2 * len(choices)
    assert sorted(line.split()[1] for line in said) == sorted(2 * choices)
    seeds = [re.search(r"--hypothesis-seed=(\d+) -k knfu or fd$", line)[1] for line in said]
    hashes = [re.search(r"PYTHONHASHSEED=(\d+)", line)[1] for line in lines]
    assert len(set(seeds)) == len(set(hashes)) == len(said)
    for line in lines:
        assert line.endswith("'-k' 'knfu or fd' : ok, 1 failed, 3 passed in 2.50s")


def test_a_failed_run_is_reported_with_a_command_that_repeats_it(run, tmp_path):
    code, lines, said = run("/default", "1")
    failed = [line for line in lines if "FAILED" in line]
    assert code == 1 and len(said) == len(kernels_of_this_processor())
    assert failed[0].endswith(": FAILED, 1 failed, 3 passed in 2.50s")
    assert failed[1:] == ["FAILED tests/test_some.py::test_this - assert 1 < 0"]
    command, _ = failed[0].split(" : ")
    subprocess.run(["env", "-u", "OPENBLAS_CORETYPE", "bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "said").read_text(encoding="utf-8").splitlines()[-1] in said


def test_examples_repeat_under_the_default_profile():
    assert settings.default is settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
    drawn: list[list[int]] = []

    @settings(settings.get_profile("fixed"), max_examples=20)
    @given(st.integers())
    def draw(number):
        drawn[-1].append(number)

    for _ in range(2):
        drawn.append([])
        draw()
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 5
