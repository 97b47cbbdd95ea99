from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd.cli.main import main
from fedkd.continual.registry import LEARNERS
from fedkd.errors import Interrupted, RunFailed, UserError
from fedkd.fusion.registry import STRATEGIES
from fedkd.plan.load import load_scenario
from fedkd.scenario.dump import dump_toml
from fedkd.simulation.check_data import skew
from fedkd.tracking.wording import format_bytes

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def fake_run(monkeypatch):
    """Stand in for ``fedkd.run``: record the calls, or raise what `calls["raises"]` holds."""
    calls: dict = {}

    def record(name):
        def call(*args, **kwargs):
            calls[name] = (args, kwargs)
            if "raises" in calls:
                raise calls["raises"]

        return call

    for name in ("run", "resume"):
        monkeypatch.setattr(f"fedkd.simulation.{name}", record(name))
    return calls


def run_main(capsys, *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


MALFORMED = {
    "unknown verb": (["rnu"], ["'rnu'", "run"]),
    "no verb": ([], ["VERB"]),
    "no file": (["run"], ["give a scenario file"]),
    "missing file": (["run", "nowhere.toml"], ["nowhere.toml: no such file"]),
    "unknown flag": (["run", "FILE", "--fast"], ["--fast"]),
    "unknown engine": (["run", "FILE", "--engine", "spark"], ["--engine", "'spark'", "ray", "inline"]),
    "seed is a word": (["run", "FILE", "--seed", "x"], ["--seed", "int", "'x'"]),
    "seed is negative": (["run", "FILE", "--seed", "-1"], ["FILE: seed", "≥ 0", "-1"]),
    "set without value": (["run", "FILE", "--set", "rounds"], ["--set", "'rounds'", "key=value"]),
    "set of nothing": (["run", "FILE", "--set"], ["--set", "at least one"]),
    "set into a value": (["run", "FILE", "--set", "seed.x=1"], ["--set", "seed is a single value"]),
    "rounds too small": (["run", "FILE", "--set", "rounds=0"], ["FILE: rounds", "≥ 1", "got 0"]),
    "rounds is a word": (["run", "FILE", "--set", "rounds=ten"], ["FILE: rounds", "an integer", "'ten'"]),
    "unknown key": (
        ["run", "FILE", "--set", "training.batchsize=2"],
        ["training.batchsize", "training.batch_size"],
    ),
    "unknown table": (["check", "FILE", "--set", "trainnig.lr=1"], ["FILE: trainnig", "'training'"]),
    "unknown optimizer": (
        ["run", "FILE", "--set", "training.optimizer=lion"],
        ["training.optimizer", "'adam'", "'sgd'", "'lion'"],
    ),
    "hyper-parameter out of range": (
        ["run", "FILE", "--set", "fusion.beta=-1"],
        ["FILE: fusion.beta: must be ≥ 0, got -1"],
    ),
    "unknown hyper-parameter": (["run", "FILE", "--set", "fusion.betta=1"], ["fusion.betta", "'beta'"]),
    "unknown strategy": (["run", "FILE", "--set", "fusion.strategy=knuf"], ["fusion.strategy", "'knfu'"]),
    "unknown model": (["run", "FILE", "--set", "clients.0.model=mpl"], ["clients.0.model", "'mlp'"]),
    "unknown data set": (["check", "FILE", "--set", "data.dataset=mnits"], ["data.dataset", "'mnist'"]),
    "too many sampled": (
        ["run", "FILE", "--set", "clients_per_round=9"],
        ["clients_per_round", "≤ data.clients (4)"],
    ),
    "bad file": (["run", "BROKEN"], ["BROKEN", "line 2"]),
    "deep file": (["run", "DEEP"], ["DEEP: not valid TOML: tables or lists more than 64 deep"]),
    "deep value": (
        ["run", "FILE", "--set", f"data.args={'[' * 999}{']' * 999}"],
        ["data.args: '[[[", "not valid"],
    ),
    "a number of thousands of digits": (
        ["run", "DIGITS"],
        ["DIGITS: not valid TOML: a number with thousands of digits"],
    ),
    "a name with a NUL": (["run", "a\0b.toml"], ["cannot be read: embedded null byte"]),
    "a folder with a NUL": (
        ["check", "FILE", "--set", r'data.root="a\u0000b"'],
        ["FILE: data.root: is not a valid folder name"],
    ),
    "a long folder": (
        ["check", "FILE", "--set", f"data.root={'a' * 5000}"],
        ["FILE: data.root: is not a valid folder name"],
    ),
    "nobody's home": (
        ["check", "FILE", "--set", "data.root=~nobody-here/x"],
        ["FILE: data.root: must begin with an existing home folder, got '~nobody-here/x'"],
    ),
    "more clients than anybody": (
        ["check", "FILE", "--set", "data.clients=100000000"],
        ["FILE: data.clients: must be ≤ 1000000, got 100000000"],
    ),
    "beyond all measure": (
        ["check", "FILE", "--set", "data.partition.alpha=1e308"],
        ["FILE: data.partition.alpha: must be ≤ 1e+09"],
    ),
    "empty file": (["run", "EMPTY"], ["EMPTY: is empty; expected a scenario in TOML"]),
    "none of the values": (
        ["check", "FILE", "--set", "continual.tasks.order=random"],
        ["FILE: continual.tasks.order: must be one of 'same', 'shuffled'", "got 'random'"],
    ),
    "unknown model argument": (
        ["check", "FILE", "--set", "clients.0.args.width=3"],
        ["FILE: clients.0.args", "'width'", "hidden"],
    ),
    "wrong output shape": (
        ["check", "FILE", "--set", "clients.0.model=cli_test_plugin:wrong"],
        ["FILE: clients.0.model", "[2, 10]"],
    ),
    "more samples than there are": (
        ["check", "FILE", "--set", "data.partition.samples_per_client=5000"],
        ["FILE: data.", "5000"],
    ),
    "missing module": (
        ["check", "FILE", "--set", "clients.0.model=nowhere:x"],
        ["clients.0.model", "nowhere"],
    ),
    "list of nonsense": (["list", "engines"], ["'engines'", "strategies"]),
    "resume of nothing": (["resume"], ["DIR"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_input_gives_one_line_and_status_2(case, digits_toml, tmp_path, capsys, fake_run):
    words, expected = MALFORMED[case]
    broken = tmp_path / "broken.toml"
    broken.write_text("name = 'x'\nrounds = = 3\n")
    deep, digits = tmp_path / "deep.toml", tmp_path / "many-digits.toml"
    deep.write_text(f"a = {'[' * 2000}{']' * 2000}\n")
    digits.write_text(f"seed = {'9' * 4400}\n")
    empty = tmp_path / "empty.toml"
    empty.write_text("# what was here is gone\n")
    (tmp_path / "cli_test_plugin.py").write_text(
        "import torch\ndef wrong(input_shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes + 1))\n"
    )
    files = {"FILE": str(digits_toml), "BROKEN": str(broken), "EMPTY": str(empty)}
    files |= {"DEEP": str(deep), "DIGITS": str(digits)}
    status, _, err = run_main(capsys, *(files.get(word, word) for word in words))
    assert status == 2
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    for text in expected:
        for name, path in files.items():
            text = text.replace(name, path)
        assert text in err
    assert not fake_run, "the run must not start"


def test_run_passes_on_the_scenario_the_folder_and_a_display(digits_toml, tmp_path, capsys, fake_run):
    words = ["run", digits_toml, "--out", tmp_path / "out", "--engine", "ray", "--seed", "5", "--quiet"]
    status, out, err = run_main(capsys, *words, "--set", "rounds=3", "fusion.beta=2", "--set", "name=other")
    assert (status, out, err) == (0, "", "")
    (plan,), options = fake_run["run"]
    scenario = plan.scenario
    assert (scenario.rounds, scenario.seed, scenario.name, scenario.engine.kind) == (3, 5, "other", "ray")
    assert scenario.fusion.model_extra["beta"] == 2.0
    assert options["out"] == tmp_path / "out" and len(options["observers"]) == 1


def test_the_file_may_follow_the_overrides(digits_toml, capsys, fake_run):
    status, _, _ = run_main(capsys, "run", "--set", "rounds=3", "name=other", digits_toml)
    assert status == 0 and fake_run["run"][0][0].scenario.rounds == 3 and fake_run["run"][1]["out"] is None


def test_resume_passes_on_the_folder(tmp_path, capsys, fake_run):
    assert run_main(capsys, "resume", tmp_path, "--quiet")[0] == 0
    assert fake_run["resume"][0] == (tmp_path,)


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (UserError("lies there already", key="--out"), 2, "error: --out: lies there already"),
        (RunFailed("out of memory", round=3, client=4), 3, "client 4, round 3: out of memory"),
        (Interrupted("interrupted; continue with: fedkd resume runs/x"), 130, "fedkd resume runs/x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("division\nby zero"),
            3,
            "ZeroDivisionError: division by zero (internal error; set",
        ),
    ],
)
def test_every_kind_of_error_has_its_status_and_one_line(
    error, status, expected, digits_toml, capsys, fake_run, monkeypatch
):
    monkeypatch.delenv("FEDKD_TRACEBACK", raising=False)
    fake_run["raises"] = error
    got, _, err = run_main(capsys, "run", digits_toml)
    assert got == status
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err


def test_the_traceback_of_an_internal_error_is_shown_on_request(digits_toml, fake_run, monkeypatch):
    monkeypatch.setenv("FEDKD_TRACEBACK", "1")
    fake_run["raises"] = ZeroDivisionError("x")
    with pytest.raises(ZeroDivisionError):
        main(["run", str(digits_toml)])


def test_check_describes_the_run(digits_toml, capsys):
    status, out, err = run_main(capsys, "check", digits_toml)
    assert (status, err) == (0, "")
    assert out.endswith("ok\n")
    # (64 + 1) * 200 + 201 * 200 + 201 * 10 weights of the default mlp on 8×8 digits.
    assert "mlp: 4 clients, 55,210 parameters" in out
    assert "min 80, median 80, max 80" in out and "local test samples per client: min 20" in out
    assert "beta = 10.0" in out
    # 4 clients * 60 samples * 10 classes * 4 bytes.
    assert "9.6 kB up, 9.6 kB down" in out
    assert re.search(r"of 10 classes per client \(median\), effective number of classes .* \d\.\d", out)


def test_check_states_the_number_of_clients_in_memory(digits_toml, capsys):
    assert "in memory" not in run_main(capsys, "check", digits_toml)[1]
    _, out, _ = run_main(capsys, "check", digits_toml, "--set", "engine.live_clients=2")
    # The model's 220,840 bytes, 60 * 10 numbers of guidance, and what a client takes besides.
    assert "at most 2 clients in memory per process, about 239.6 kB each; the state" in out


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["fusion.strategy=local"], "traffic    none"),
        (["fusion.upload_dtype=float16"], "4.8 kB up, 9.6 kB down"),
        (
            ['fusion.filters=[{by="confidence",quantile=0.2,at="upload"},{}]'],
            "filters: all but the 20 % of lowest confidence (before upload), then agreement ≥ 0.3",
        ),
        (['fusion.filters=[{votes="equal"}]'], "filters: agreement ≥ 0.3 (equal votes)"),
        (
            ["fusion.strategy=flwr:FedAvg", "clients_per_round=2"],
            "441.7 kB up, 441.7 kB down per round (clients send weights)",
        ),
        (["fusion.strategy=dlf"], "19.2 kB up, 9.6 kB down in the first round"),
        # Weights of the default mlp and 60 * 10 numbers, at four clients.
        (['fusion={strategy="fedhkt",server_model="mlp",server_epochs=1}'], "893.0 kB up, 893.0 kB down"),
        (["fusion.stale_decay=0.5"], "about 9.6 kB in memory between rounds: at most 4 uploads"),
    ],
)
def test_check_estimates_traffic(digits_toml, capsys, overrides, expected):
    status, out, _ = run_main(capsys, "check", digits_toml, "--set", *overrides)
    assert status == 0 and expected in out


def test_check_estimates_the_memory_of_a_large_fusion(digits_toml, capsys, monkeypatch):
    told = "in memory during a fusion"
    assert told not in run_main(capsys, "check", digits_toml)[1]
    monkeypatch.setattr("fedkd.simulation.check_traffic.LARGE_FUSION", 1)
    # Four clients with 60 * 10 predictions, and 80 bytes for each of their pairs.
    assert f"about 39.7 kB {told}" in run_main(capsys, "check", digits_toml)[1]


def test_check_describes_label_skew():
    shares = np.array([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert skew(shares) == "2 of 4 classes per client (median), effective number of classes (median) 2.0"
    assert skew(shares[2:]).endswith("effective number of classes (median) 4.0")


def test_check_estimates_the_bytes_that_a_run_counts(digits_toml, tmp_path, capsys):
    words = ["--set", "fusion.strategy=flwr:FedAvg", "clients_per_round=2", "rounds=1"]
    estimate = run_main(capsys, "check", digits_toml, *words)[1]
    assert run_main(capsys, "run", digits_toml, "--out", tmp_path / "out", "--quiet", *words)[0] == 0
    final = json.loads((tmp_path / "out" / "summary.json").read_text())["final"]
    assert f"{format_bytes(final['bytes_up'])} up, {format_bytes(final['bytes_down'])} down" in estimate


def test_check_accepts_a_resolved_scenario(digits_toml, tmp_path, capsys):
    frozen = tmp_path / "scenario.toml"
    frozen.write_text(dump_toml(load_scenario(digits_toml)), encoding="utf-8")
    assert run_main(capsys, "check", frozen)[0] == 0


def test_check_schema_needs_no_file(capsys):
    status, out, _ = run_main(capsys, "check", "--schema")
    assert status == 0 and json.loads(out)["title"] == "fedkd scenario"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (
            "strategies",
            [
                "Predictions on public data\n",
                "  knfu ",
                "[labelled public data]",
                "flwr:FedAdam",
                "fedavg = flwr:",
            ],
        ),
        ("models", ["resnet20", "hidden = [200, 200]"]),
        (
            "learners",
            ["Task-specific weights\n", "  naive ", "fedkd list learners NAME"],
        ),
        ("datasets", ["digits", "fashion-mnist", "image-folder"]),
    ],
)
def test_list_names_all_parts(what, expected, capsys):
    status, out, err = run_main(capsys, "list", what)
    assert (status, err) == (0, "")
    for text in expected:
        assert text in out


@pytest.mark.parametrize(
    ("what", "name", "expected"),
    [
        ("strategies", "KnFu", ["knfu ", "beta = 10.0 (float ≥ 0)", "arXiv"]),
        ("strategies", "fedadam", ["flwr:FedAdam ", "Flower's FedAdam", "beta_1 = 0.9"]),
        ("learners", "er", ["er ", "memory_size = 1000 (int ≥ 0)", "arXiv"]),
        ("models", "mlp", ["mlp ", "hidden = [200, 200]"]),
    ],
)
def test_list_describes_one_part_in_full(what, name, expected, capsys):
    status, out, err = run_main(capsys, "list", what, name)
    assert (status, err) == (0, "") and out.startswith(expected[0])
    assert all(text in out for text in expected) and all(row[0] == " " for row in out.splitlines()[1:])


@pytest.mark.parametrize("name", ["icarl", "packnet", "er", "gdumb", "fedweit"])
def test_list_states_deviations_of_a_learner_from_its_paper(name, capsys):
    assert f"  {name}* " in run_main(capsys, "list", "learners")[1]
    assert LEARNERS.load(name).source_note in run_main(capsys, "list", "learners", name)[1]


def test_list_has_one_line_for_each_strategy(capsys):
    lines = run_main(capsys, "list", "strategies")[1].splitlines()
    starred = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {"mhat*", "path*", "knfu"} < set(starred)
    named = [name.rstrip("*") for name in starred]
    assert set(STRATEGIES.builtin) < set(named) and len(set(named)) == len(named)
    status, _, err = run_main(capsys, "list", "strategies", "kufn")
    assert (status, err) == (2, "error: NAME: 'kufn' is not among the strategies; did you mean 'knfu'?\n")


def test_list_names_shipped_and_local_scenarios(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "a.toml").write_text('# What it shows.\nname = "first"\n')
    (tmp_path / "scenarios" / "b.toml").write_text("name = ")
    lines = run_main(capsys, "list", "scenarios")[1].splitlines()
    assert [line.split(maxsplit=1) for line in lines[-2:]] == [
        ["scenarios/a.toml", "What it shows."],
        ["scenarios/b.toml", "(not valid TOML)"],
    ]
    place = next(n for n, line in enumerate(lines) if line.startswith("quickstart "))
    assert "Ten clients" in lines[place] and lines[place + 1].strip() == "under a minute on 2 cores"
    benches = run_main(capsys, "list", "benches")[1].splitlines()
    assert any(line.startswith("bench/quickstart ") for line in benches)


def test_doctor_continues_after_a_broken_part(capsys, monkeypatch, tmp_path):
    from fedkd.cli import doctor

    def broken() -> str:
        raise RuntimeError("no raylet\nsecond line")

    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "x.gz").touch()
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(doctor, "_ray_resources", broken)
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    status, out, _ = run_main(capsys, "doctor")
    rows = dict(
        line.split(maxsplit=1) for line in out.splitlines() if line.split()[0] in ("torch", "mnist", "cpus")
    )
    assert status == 0
    assert rows["torch"][0].isdigit() and rows["mnist"] == str(tmp_path / "mnist")
    assert "failed: RuntimeError: no raylet\n" in out and "other data    mine" in out


def test_lazily_imported_names_are_declared_in_advance():
    import fedkd

    assert {"run", "resume", "bench", "load_scenario"} <= set(dir(fedkd))


@pytest.mark.parametrize(
    ("words", "heavy", "told"),
    [
        (["--help"], {"torch", "ray", "flwr", "numpy", "pydantic", "rich"}, "resume"),
        (["list"], {"torch", "ray", "flwr"}, "benches\n"),
        (["list", "strategies", "knfu"], {"torch", "ray", "flwr"}, "beta = 10.0"),
        (["check", "quickstart"], {"ray", "flwr", "torch._dynamo", "sklearn", "torchvision"}, "ok\n"),
    ],
)
def test_verbs_leave_heavy_packages_alone(words, heavy, told):
    code = (
        "import sys\n"
        "from fedkd.cli.main import main\n"
        f"try:\n    assert main({words}) == 0\nexcept SystemExit as left:\n    assert not left.code\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_repository())
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


def test_a_closed_pipe_is_no_failure():
    command = f"{sys.executable} -m fedkd check --schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=_repository())
    assert done.stdout == "{\n" and done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where the pipe took it all before the reader left


def test_a_run_continues_silently_after_its_pipe_closes(digits_toml, tmp_path):
    command = f"{sys.executable} -m fedkd run {digits_toml} --out {tmp_path / 'out'} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=_repository())
    assert done.stdout.startswith("digits-test: knfu") and done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert (tmp_path / "out" / "summary.json").exists()


def _repository() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("verb", "path", "advice"),
    [
        ("run", "scenarios/bench/quickstart.toml", "is a bench, not a scenario; run it with: fedkd bench"),
        ("bench", "scenarios/quickstart.toml", "is a scenario, not a bench; run it with: fedkd run"),
    ],
)
def test_a_bench_file_given_as_scenario_is_recognised_and_vice_versa(verb, path, advice, capsys):
    file = Path(__file__).resolve().parents[2] / path
    assert main([verb, str(file)]) == 2
    assert advice in capsys.readouterr().err


NO_HOME = "~nobody-of-this-name/x"


@pytest.mark.parametrize(
    "words",
    [
        ["compare", NO_HOME, "RUN"],
        ["watch", NO_HOME],
        ["runs", NO_HOME],
        ["resume", NO_HOME],
        ["export", NO_HOME],
        ["report", NO_HOME],
        ["report", "RUN", "--out", NO_HOME],
        ["partition", "FILE", "--out", NO_HOME],
        ["bench", "FILE", "--out", NO_HOME],
        ["tune", "FILE", "--out", NO_HOME],
        ["run", "FILE", "--out", NO_HOME],
        ["new", "strategy", "idea", "--out", NO_HOME],
    ],
    ids=" ".join,
)
def test_an_unknown_users_home_folder_gives_one_line(words, digits_toml, capsys):
    assert main([str(digits_toml) if word == "FILE" else word for word in words]) == 2
    told = f"error: must begin with an existing home folder, got '{NO_HOME}'\n"
    assert capsys.readouterr().err == told


def test_a_small_address_space_is_reported_before_a_library_aborts(digits_toml, monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (600_000 * 1024, resource.RLIM_INFINITY))
    assert main(["run", str(digits_toml)]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: the address space is limited to 614 MB")
    assert error.count("\n") == 1
