"""The pages in headless Chromium: nothing goes wrong, nothing is asked for, and what can be touched works."""

from __future__ import annotations

import json
import time
from pathlib import Path

import browsing
import pytest
from browsing import DESKTOP, LONGEST, PHONE, until

from fedkd.report.page.write import write_report
from fedkd.report.study import write_study


@pytest.fixture(scope="module")
def browser():
    yield from browsing.started()


@pytest.fixture
def show(browser):
    """Return a function that opens a page; afterwards it is checked that all has gone well."""

    def open_page(path: Path, size: tuple[int, int] = DESKTOP):
        browsing.show(browser, path.as_uri(), size)
        until(browser, "document.documentElement.dataset.ready !== undefined")
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert addresses and all(url.startswith(("file:", "data:", "blob:")) for url in addresses)


def draw_all(browser) -> None:
    """Scroll to every figure, which is drawn when it comes near."""
    for number in range(browser.execute_script("return document.querySelectorAll('.plot').length")):
        of_it = f"document.querySelectorAll('.plot')[{number}]"
        browser.execute_script(f"{of_it}.scrollIntoView()")
        until(browser, f"{of_it}.querySelector('.main-svg')")


def test_a_run_page_fits_a_phone(make_run, show):
    browser = show(write_report([make_run(planned=9)]), PHONE)
    draw_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    first_row = "document.querySelector('.why tbody tr').textContent"
    weights = "JSON.stringify(document.querySelector('.matrix').data[0].z)"
    before = browser.execute_script(f"return [{first_row}, {weights}]")
    browser.execute_script(
        "const slider = document.querySelector('[data-neighbours] input');"
        "slider.value = 0; slider.dispatchEvent(new Event('input'))"
    )
    until(browser, "document.querySelector('[data-neighbours] output').textContent === 'round 1'")
    after = browser.execute_script(f"return [{first_row}, {weights}]")
    assert before[0] != after[0] and before[1] != after[1]
    browser.execute_script(
        "const chosen = document.querySelector('select');"
        "chosen.value = 2; chosen.dispatchEvent(new Event('change'))"
    )
    row = json.loads(after[1])[2]
    told = browser.execute_script(
        "return [...document.querySelectorAll('.why tbody tr')].map(row => Number(row.cells[1].textContent))"
    )
    assert told == sorted(row, reverse=True)


def test_figures_reserve_their_space_before_drawing(make_run, show):
    browser = show(write_report([make_run()]))
    last = "[...document.querySelectorAll('[data-figure] .plot')].at(-1)"
    height = f"return {last}.getBoundingClientRect().height"
    told = f"return getComputedStyle({last}, '::before').content"
    assert "drawing" in browser.execute_script(told)
    reserved = browser.execute_script(height)
    draw_all(browser)
    assert browser.execute_script(told) == "none" and browser.execute_script(height) == reserved


def test_a_legend_stands_below_its_figure_on_a_phone(make_run, show):
    path = write_report([make_run()])
    where = (
        "return ['.legend', '.xtitle'].map(part => document.querySelector('.plot').querySelector(part)"
        ".getBoundingClientRect().top)"
    )
    below = {}
    for size in (PHONE, DESKTOP):
        browser = show(path, size)
        until(browser, "document.querySelector('.plot .legend')")
        legend, axis = browser.execute_script(where)
        below[size] = legend > axis
    assert below == {PHONE: True, DESKTOP: False}


def test_a_cut_table_says_that_it_scrolls(make_run, show):
    path = write_report([make_run()])
    hint = "document.querySelector('[data-table=clients] .hint').hidden"
    cut = "document.querySelector('[data-table=clients] .scroll').classList.contains('cut')"
    browser = show(path, PHONE)
    until(browser, f"!{hint} && {cut}")
    browser.execute_script("document.querySelector('[data-table=clients] .scroll').scrollLeft = 10000")
    until(browser, f"!{hint} && !{cut}")
    until(show(path, DESKTOP), f"{hint} && !{cut}")


def test_pages_work_in_light_and_dark_and_from_files(make_run, show, tmp_path):
    browser = show(write_report([make_run()]))
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"
    line = "document.querySelector('.plot').data.at(-1).line.color"
    until(browser, "document.querySelector('.plot .main-svg')")
    assert browser.execute_script(f"return {line}") == "#0072B2"
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(ground) == "rgb(21, 24, 27)"
    until(browser, f"{line} === '#5AB0E8'")
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    for kind in ("csv", "svg"):
        browser.execute_script(
            f"document.querySelector('[data-figure=accuracy-global] [data-save={kind}]').click()"
        )
        end = time.monotonic() + LONGEST
        while not (tmp_path / f"accuracy-global.{kind}").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    lines = (tmp_path / "accuracy-global.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith(
        'round,"after fusion, mean","lowest to highest client, low"'
    )


def test_bench_tables_sort_and_filter(study, show, tmp_path):
    write_study(study, tmp_path)
    browser = show(write_report([tmp_path]))
    draw_all(browser)
    click = "document.querySelectorAll('[data-table=comparison] th button')[3].click();"
    cells = (
        "return [...document.querySelectorAll('[data-table=comparison] tbody tr')]"
        ".filter(row => !row.hidden).map(row => row.cells[1].textContent + ' ' + row.cells[0].textContent)"
    )
    ordered = ["fedmd 0.1", "local 0.1", "knfu 0.1", "local 10", "fedmd 10", "knfu 10"]
    assert browser.execute_script(click + cells) == ordered
    assert browser.execute_script(click + cells) == ordered[::-1]
    by_difference = click.replace("[3]", "[4]") + cells
    assert browser.execute_script(by_difference)[-2:] == ["local 0.1", "local 10"], "unknown come last"
    browser.execute_script(
        "const filter = document.querySelector('[data-table=comparison] input');"
        "filter.value = 'KNFU'; filter.dispatchEvent(new Event('input'))"
    )
    assert set(browser.execute_script(cells)) == {"knfu 0.1", "knfu 10"}


def test_comparison_pages_work(make_run, show, tmp_path):
    write_report([make_run("a"), make_run("b<b>")], tmp_path / "page.html")
    browser = show(tmp_path / "page.html", PHONE)
    draw_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    legend = (
        "[...document.querySelectorAll('.plot')[0].querySelectorAll('.legendtext')].map(t => t.textContent)"
    )
    assert "b<b>, after fusion" in browser.execute_script(f"return {legend}")
