"""The page of a study: from the example in docs/studies.md to a file that a browser draws."""

import json
import re
import shutil
import struct
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from engine.plan.plan import plan_from_dict
from experiments.cli.main import run as cli
from experiments.validation.comparison import Decisions, Tokens, Validation
from experiments.validation.verdict import TimeError, judge
from tests.helpers.browser import browser, look, requests, wait
from tests.helpers.reports import Page, values
from tests.helpers.traces import make_trace, random_experts
from tracekit.trace import Trace

pytest.importorskip("altair", reason="altair is not installed: pip install 'moe-tracekit[report]'")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")

from experiments.study.study_folder import TABLES

DOCS = Path(__file__).resolve().parents[3] / "docs" / "studies.md"


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the page, run as it stands there, on a trace of the demo's shape."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "demo").mkdir()
    rng = np.random.default_rng(4)
    tokens, requests = 120, 8
    make_trace(
        folder / "demo" / "mixtral-mini.trace",
        random_experts(rng, tokens, layers=8),
        num_experts=8,
        request=np.arange(tokens) % requests,
        phase=(np.arange(tokens) >= requests).astype(np.uint8),
        lookahead={1: rng.normal(size=(tokens, 7, 8)).astype(np.float16)},
    )
    example, *_ = re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (folder / "study.toml").write_text(example)
    assert cli(["study", str(folder / "study.toml"), "--output", str(folder / "study")]) == 0
    return folder / "study"


@pytest.fixture(scope="module")
def page(studied: Path) -> Path:
    output = studied.parent / "report.html"
    assert cli(["report", str(studied), "--output", str(output)]) == 0
    return output


def specs(page: Path) -> dict[str, Any]:
    return Page(page.read_text("utf-8")).charts()


def test_everything_is_drawn_and_said(page: Path, studied: Path) -> None:
    drawn = specs(page)
    kinds = ("effects", "speed", "memory", "fates", "regret", "timeline")
    assert set(drawn) == {f"chart-{kind}-{place}" for kind in kinds for place in (0, 1)} | {
        "chart-curves-0",
        "chart-heat-0",
    }
    text = page.read_text("utf-8")
    summary = json.loads((studied / "study.json").read_text())
    said = "".join(Page(text).words)
    for setting in summary["settings"]:
        assert setting["statement"][1:] in said
        for compared in setting["comparisons"]:
            assert compared["verdict"] in said
        assert setting["answers"] and all(answer in said for answer in setting["answers"])
    assert "tracekit study study.toml --output" in said and "winner.plan.toml" in said
    assert "no such" not in said
    own = text.replace(re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0], "")
    assert "http://" not in own and "https://" not in own


def test_numbers_on_the_page_are_those_of_the_rows(page: Path, studied: Path) -> None:
    rows = pl.read_parquet(studied / "results.parquet").filter(pl.col("error").is_null() & (pl.col("hardware") == "t4"))
    exact = {float(value) for value in re.findall(r'<data value="([^"]+)"', page.read_text("utf-8"))}
    for row in rows.iter_rows(named=True):
        speeds = (row["tokens_per_second"], row["bound_tokens_per_second"])
        for value in (*speeds, row["hit_ratio"], row["decode_hit_ratio"]):
            assert any(abs(value - known) <= 1e-12 * abs(value) for known in exact), row["plan"]
    spans = [
        bar
        for data in specs(page)["chart-speed-1"]["spec"]["datasets"].values()
        for bar in data
        if "low" in bar and bar["rate"] is not None
    ]
    assert len(spans) == min(12, len(rows))
    assert all(bar["low"] <= bar["rate"] <= bar["high"] for bar in spans)


def test_the_same_study_gives_the_same_page(page: Path, studied: Path, tmp_path: Path) -> None:
    assert cli(["report", str(studied), "--output", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_bytes() == page.read_bytes()


def test_a_study_of_hits_alone_has_a_page_too(studied: Path, tmp_path: Path) -> None:
    trace = studied.parent / "demo" / "mixtral-mini.trace"
    text = f'traces = "{trace}"\n[grid]\ncapacity = ["2/layer", "25%"]\neviction = ["lru", "lfu"]\n'
    (tmp_path / "s.toml").write_text(text)
    assert cli(["study", str(tmp_path / "s.toml"), "--output", str(tmp_path / "out")]) == 0
    assert cli(["report", str(tmp_path / "out"), "--output", str(tmp_path / "r.html")]) == 0
    assert set(specs(tmp_path / "r.html")) == {*("chart-effects-0", "chart-curves-0", "chart-curves-1", "chart-heat-0")}


def test_what_is_no_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} holds no finished study: no results.parquet\n"
    (tmp_path / "results.parquet").write_bytes(b"nothing of the kind")
    assert cli(["report", str(tmp_path)]) == 2
    assert "the study's results cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", TABLES)
def test_files_of_two_studies_are_not_drawn_together(
    name: str, studied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an interruption may leave them; or a file with a flipped bit, on which polars may crash."""
    shutil.copytree(studied, tmp_path / "study")
    file = tmp_path / "study" / name
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    assert cli(["report", str(tmp_path / "study"), "--output", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err
    assert "do not belong together: run tracekit study again" in said and said.count("\n") == 1


def validation_json() -> bytes:
    """What `tracekit validate --json` prints; the numbers are invented."""
    measured = [10.0 + 0.1 * step for step in range(40)]
    time = TimeError(
        hardware="t4",
        calibrated_here=False,
        emulated_link=None,
        steps=40,
        measured_tokens_per_second=83.6,
        simulated_tokens_per_second=85.4,
        tokens_per_second_error=85.4 / 83.6 - 1,
        measured_p99_ms=13.9,
        simulated_p99_ms=13.6,
        p99_error=13.6 / 13.9 - 1,
        step_error_median=0.021,
        layer_error_median=0.05,
        total_error=-0.021,
        measured_step_ms=measured,
        simulated_step_ms=[0.979 * step for step in measured],
        measured_runs=[83.6, 82.0, 84.4],
        simulated_runs=[85.4],
    )
    found = Validation(
        model="mixtral-mini",
        plan={"cache": {"capacity": "4/layer"}},
        decisions=Decisions(entries=1234, identical=True, first_difference=None),
        tokens=Tokens(compared=77, identical=True),
        time=time,
        judged=judge(identical=True, time=time),
        prefetches=None,
        threshold=0.15,
        passed=True,
        verdict="identical",
    )
    return msgspec.json.encode(found)


def test_a_validation_has_its_panel(studied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given by option, or found in the study's folder; what is none is one line."""
    given = tmp_path / "v.json"
    given.write_bytes(validation_json())
    shutil.copytree(studied, tmp_path / "study")
    command = ["report", str(tmp_path / "study"), "--output"]
    assert cli([*command, str(tmp_path / "given.html"), "--validation", str(given)]) == 0
    (tmp_path / "study" / "validation.json").write_bytes(validation_json())
    assert cli([*command, str(tmp_path / "found.html")]) == 0
    assert (tmp_path / "given.html").read_bytes() == (tmp_path / "found.html").read_bytes()
    text = (tmp_path / "given.html").read_text()
    assert "chart-steps" in specs(tmp_path / "given.html")
    told = ("Passed: simulation and engine decide alike; tokens/s are off by +2.2%, the p99 of a token by \u22122.2%",)
    told += ("1,234 entries", "median error 2.1% (allowed: 15.0%)", "the engine&#x27;s 3 runs are 2.9 % apart")
    for words in told:
        assert words in text
    capsys.readouterr()
    for wrong, said in (
        (b"{}", "is not what tracekit validate --json prints: Object missing required field `model`"),
        (b"\xff", "is not what tracekit validate --json prints"),
    ):
        given.write_bytes(wrong)
        assert cli([*command, str(tmp_path / "r.html"), "--validation", str(given)]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1
    assert cli([*command, str(tmp_path / "r.html"), "--validation", str(tmp_path / "none.json")]) == 2
    assert "cannot read the validation" in capsys.readouterr().err


def test_the_answer_comes_first(page: Path, studied: Path) -> None:
    """Of each machine a sentence and the five best plans, before anything else; the ranking is there, too."""
    text = page.read_text("utf-8")
    summary = json.loads((studied / "study.json").read_text())
    before = text[: text.index('id="filter"')]
    for setting in summary["settings"]:
        assert setting["statement"][1:] in before and setting["verdict"][1:] in before
        assert len(setting["best"]) == 5 and setting["best"][0]["plan_toml"] == setting["plan_toml"]
        speeds = [leader["value"] for leader in setting["best"]]
        assert speeds == sorted(speeds, reverse=True) and all(f'<data value="{speed!r}">' in before for speed in speeds)
        assert len({leader["name"] for leader in setting["best"]}) == 5
        for line in setting["ranking"]:
            assert f"<li>{line}</li>" in text
    assert "<svg" not in before[before.index("<header>") :] and 'class="chart"' not in before


def test_plans_are_told_apart_and_nothing_is_cut(page: Path) -> None:
    for name, chart in specs(page).items():
        if name.startswith(("chart-speed", "chart-fates", "chart-regret")):
            found = [row for row in values(chart) if "lines" in row]
            assert found and len({row["label"] for row in found}) <= 12
            for row in found:
                lines = row["lines"].split("\n")
                assert " ".join(line for line in lines if line != " ") == row["label"]
                assert max(map(len, lines)) <= 42


def figures(studied: Path, tmp_path: Path, capsys: Any, *arguments: str) -> dict[str, Path]:
    """What `report --figures` wrote, by name."""
    folder = tmp_path / "figures"
    command = ["report", str(studied), "--output", str(tmp_path / "r.html"), "--figures", str(folder)]
    assert cli([*command, *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["figures"]
    found = {path.name: path for path in folder.iterdir()}
    assert found.keys() == {Path(path).name for path in told} and all(told.values())
    return found


def test_figures_are_pictures_of_every_chart(page: Path, studied: Path, tmp_path: Path, capsys: Any) -> None:
    found = figures(studied, tmp_path, capsys, "--format", "png")
    pictures = [path for name, path in found.items() if name.endswith(".png")]
    assert len(pictures) == len(specs(page))
    assert {
        "speed-rtx3060-under-transformers-eager-at-mixtral-8x7b.png",
        "regret-t4-under-transformers-eager-at-mixtral-8x7b.png",
    } <= found.keys()
    for path in pictures:
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        # A column: 3.5 inches of 300 pixels.
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and 900 < width <= 1060 and height > 150, (path.name, width)
        # A blank picture would be almost nothing once compressed.
        assert len(data) > 8000, path.name


def test_figures_can_be_chosen_and_are_vectors_or_tables(studied: Path, tmp_path: Path, capsys: Any) -> None:
    chosen = ("--select", "speed-t4*", "--select", "best-*")
    found = figures(studied, tmp_path, capsys, "--format", "svg", *chosen)
    best = ("best-rtx3060-under-transformers-eager-at-mixtral-8x7b", "best-t4-under-transformers-eager-at-mixtral-8x7b")
    assert found.keys() == {
        "speed-t4-under-transformers-eager-at-mixtral-8x7b.svg",
        *(f"{name}.{end}" for name in best for end in ("csv", "tex")),
    }
    assert b"<svg" in found["speed-t4-under-transformers-eager-at-mixtral-8x7b.svg"].read_bytes()
    summary = json.loads((studied / "study.json").read_text())
    (t4,) = (setting for setting in summary["settings"] if setting["hardware"] == "t4")
    table = pl.read_csv(found[f"{best[1]}.csv"])
    assert table["tokens/s"].to_list() == [leader["value"] for leader in t4["best"]]
    tex = found[f"{best[1]}.tex"].read_text()
    assert tex.count(r"\\") == 6 and r"\begin{tabular}{lrlrr}" in tex
    (tmp_path / "pdf").mkdir()
    (drawn,) = figures(studied, tmp_path / "pdf", capsys, "--select", "regret-t4*").values()
    assert drawn.suffix == ".pdf" and drawn.read_bytes().startswith(b"%PDF")
    command = ["report", str(studied), "--output", str(tmp_path / "r.html")]
    assert cli([*command, "--figures", str(tmp_path / "f"), "--select", "sped-*"]) == 2
    said = capsys.readouterr().err
    assert (
        "no figure is named 'sped-*'; there are " in said
        and "speed-rtx3060-under-transformers-eager-at-mixtral-8x7b, " in said
    )
    assert cli([*command, "--format", "svg"]) == 2
    assert "--figures DIR" in capsys.readouterr().err


def test_timelines_and_experts_are_those_of_the_traces(studied: Path) -> None:
    """Bars against the sum of a replay's parts, shares against counts."""
    from engine.replay.replay import replay

    trace = Trace.open(studied.parent / "demo" / "mixtral-mini.trace")
    shares = pl.read_parquet(studied / "experts.parquet")
    for layer in range(trace.layers):
        counts = np.bincount(trace.experts[:, layer].ravel(), minlength=8)
        own = shares.filter(pl.col("layer") == layer)
        assert own["lookups"].to_list() == counts.tolist() and own["share"].sum() == pytest.approx(1)
    summary = json.loads((studied / "study.json").read_text())
    bars = pl.read_parquet(studied / "timeline.parquet")
    for setting in summary["settings"]:
        own = bars.filter(pl.col("hardware") == setting["hardware"])
        assert own["layers"][0] == own["of_layers"][0] == 8
        ends = []
        plan = plan_from_dict(tomllib.loads(setting["plan_toml"]))
        replay(
            trace,
            plan,
            setting["hardware"],
            model_shape="mixtral-8x7b",
            bounds=False,
            on_done=lambda done, ends=ends: ends.append(done.step_ns),
        )
        took = own.filter(pl.col("lane") == "compute")
        length = took["end_ms"].max() - took["begin_ms"].min()
        assert length == pytest.approx(ends[0][own["step"][0]] / 1e6, abs=1e-5)


def test_in_a_browser(studied: Path, tmp_path: Path) -> None:
    """Chromium: nothing is asked for, nothing complained about; every chart, tooltips, filter, phone and dark."""
    (tmp_path / "v.json").write_bytes(validation_json())
    page = tmp_path / "r.html"
    assert cli(["report", str(studied), "--output", str(page), "--validation", str(tmp_path / "v.json")]) == 0
    names = specs(page)
    with browser(tmp_path / "profile") as driver:
        driver.get("about:blank")
        requests(driver)  # what a fresh browser asks of itself
        for dark, width, height in ((False, 1366, 800), (True, 390, 844)):
            look(driver, dark=dark, width=width, height=height, phone=width < 600)
            driver.get(page.as_uri())
            told = f"return document.documentElement.dataset.drawn === '{len(names)}'"
            wait(driver, told)
            assert {url for url in requests(driver) if not url.startswith("data:")} == {page.as_uri()}
            # Nothing sticks out sideways.
            assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 100) == dark
            for name in names:
                box = driver.execute_script(
                    f"const c = document.querySelector('#{name} svg, #{name} canvas');"
                    "return c && [c.getBoundingClientRect().width, c.getBoundingClientRect().height]"
                )
                assert box is not None and 280 < box[0] <= width and box[1] > 90, name
        assert driver.get_log("browser") == []
        look(driver, dark=False, width=1366, height=800)
        driver.get(page.as_uri())
        wait(driver, told)
        hover(driver, "chart-memory-0", '[aria-roledescription="point"]')
        said = driver.execute_script("return document.getElementById('vg-tooltip-element').innerText")
        assert "tokens/s" in said and "device memory, GB" in said
        hover(driver, "chart-heat-0", "canvas")
        said = driver.execute_script("return document.getElementById('vg-tooltip-element').innerText")
        assert "share of lookups" in said

        def bars() -> int:
            query = "return document.querySelectorAll('#chart-speed-0 [aria-roledescription=\"bar\"]').length"
            return int(driver.execute_script(query))

        before = bars()
        rows = "return [...document.querySelectorAll('tr[data-row=\"lfu\"]')].every((row) => row.hidden)"
        assert not driver.execute_script(rows)
        driver.find_element("css selector", 'input[data-shown="lfu"]').click()
        wait(driver, "return document.documentElement.dataset.hidden === '1'")
        kept = [bar for bar in values(names["chart-speed-0"]) if bar["policy"] != "lfu"]
        assert bars() == len(kept) < before and driver.execute_script(rows)
        driver.find_element("id", "show-none").click()
        wait(driver, "return Number(document.documentElement.dataset.hidden) > 1")
        assert bars() == 0
        driver.find_element("id", "show-all").click()
        wait(driver, "return document.documentElement.dataset.hidden === '0'")
        assert bars() == before
        # Everything that can be used can be reached by key, has a name, and shows that it has the focus.
        driver.find_element("id", "show-all").send_keys("\ue004")  # Tab
        assert driver.switch_to.active_element.get_attribute("id") == "show-none"
        assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        unnamed = "return [...document.querySelectorAll('button, input, summary, [tabindex], svg.marks, canvas.marks')]"
        unnamed += ".filter((e) => !(e.getAttribute('aria-label') || e.innerText || (e.labels && e.labels[0].innerText)"
        unnamed += " || e.closest('[aria-hidden=true], details:not([open]), [aria-label]'))).map((e) => e.outerHTML)"
        assert driver.execute_script(unnamed) == []
        # Where nothing is left to draw, Vega warns of it.
        assert [entry for entry in driver.get_log("browser") if "Infinite extent" not in entry["message"]] == []


def hover(driver: Any, chart: str, mark: str) -> None:
    """Put the pointer on a mark of a chart, and wait for its tooltip."""
    from selenium.webdriver.common.action_chains import ActionChains

    element = driver.find_element("css selector", f"#{chart} {mark}")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_by_offset(1, 1).move_to_element(element).perform()
    wait(driver, "const t = document.getElementById('vg-tooltip-element'); return t && t.classList.contains('visible')")
