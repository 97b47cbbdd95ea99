from __future__ import annotations

from fedkd.cli.main import main
from fedkd.report.page.write import write_report


def test_the_page_shows_runs_side_by_side(make_run, payload_of, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [make_run("a"), make_run("b", rounds=2, changes={"seed": 9, "fusion": {"strategy": "fedmd"}})]
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out == "report  report.html\n"
    payload = payload_of(tmp_path / "report.html")
    results = {row[0]: row for row in payload["tables"]["results"]["rows"]}
    assert results["a"][1:4] == ["knfu", 0, 3] and results["b"][1:4] == ["fedmd", 9, 2]
    assert results["b"][8] == 2 * 3000 / 1e6 and results["b"][9] == 2 * 1.75
    differences = {row[0]: row[1:] for row in payload["tables"]["differences"]["rows"]}
    assert differences["fusion.strategy"] == ["knfu", "fedmd"]
    assert differences["seed"] == ["0", "9"] and differences["rounds"] == ["3", "2"]
    names = [trace["name"] for trace in payload["figures"]["accuracy-global"]["data"]]
    assert names == [f"{run}, {moment} fusion" for run in "ab" for moment in ("after", "before")]
    traffic = payload["figures"]["traffic"]
    assert [trace["x"][-1] for trace in traffic["data"]] == [0.009, 0.006]
    assert "type" not in traffic["layout"]["xaxis"]


def test_widely_spread_bytes_have_a_logarithmic_axis(make_run, payload_of, tmp_path):
    write_report([make_run("a"), make_run("b", sent=100_000)], tmp_path / "page.html")
    traffic = payload_of(tmp_path / "page.html")["figures"]["traffic"]
    assert traffic["layout"]["xaxis"]["type"] == "log"


def test_a_run_without_fusion_has_one_line(make_run, payload_of, tmp_path):
    write_report([make_run("a"), make_run("alone", fused=False)], tmp_path / "page.html")
    data = payload_of(tmp_path / "page.html")["figures"]["accuracy-global"]["data"]
    assert [trace["name"] for trace in data] == ["a, after fusion", "a, before fusion", "alone"]


def test_folders_of_one_name_are_distinguished(make_run, payload_of, tmp_path):
    out = tmp_path / "page.html"
    write_report([make_run("x/run"), make_run("y/run", planned=8)], out)
    assert [row[0] for row in payload_of(out)["tables"]["results"]["rows"]] == ["x/run", "y/run"]
    assert "Unfinished: y/run." in out.read_text()
    write_report([make_run("z")] * 2, out)
    assert [row[0] for row in payload_of(out)["tables"]["results"]["rows"]] == ["1: z", "2: z"]


def test_many_runs_have_a_line_each(make_run, payload_of, tmp_path):
    runs = [make_run(f"run{number}", clients=2, rounds=2) for number in range(9)]
    write_report(runs, tmp_path / "page.html")
    figure = payload_of(tmp_path / "page.html")["figures"]["accuracy-global"]
    assert [trace["name"] for trace in figure["data"]] == [f"run{number}" for number in range(9)]
    assert len(figure["rows"]) == 9 * 2 * 2, "the CSV has both measurements"
    looks = {(trace["line"]["color"], trace["line"]["dash"]) for trace in figure["data"]}
    assert len(looks) == 9


def test_a_bench_folder_is_refused_as_a_run(make_run, tmp_path, capsys):
    (tmp_path / "bench" / "runs").mkdir(parents=True)
    assert main(["report", str(make_run()), str(tmp_path / "bench")]) == 2
    assert "is a bench folder with its own page" in capsys.readouterr().err


def test_a_search_folder_is_refused(tmp_path, capsys):
    (tmp_path / "search" / "runs").mkdir(parents=True)
    (tmp_path / "search" / "tune.toml").touch()
    assert main(["report", str(tmp_path / "search")]) == 2
    assert "is a search, with its table in table.md; for pages of its runs" in capsys.readouterr().err


def test_out_may_be_a_folder_or_a_file(make_run, tmp_path, capsys):
    run = make_run("run")
    for out, page in (("pages/all", "pages/all/report.html"), ("x/mine.html", "x/mine.html")):
        assert main(["report", str(run), "--out", str(tmp_path / out)]) == 0
        assert capsys.readouterr().out == f"report  {tmp_path / page}\n"
        assert (tmp_path / page).is_file()
