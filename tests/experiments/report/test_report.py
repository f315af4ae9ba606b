"""The report: complete in itself, true to its numbers, safe with hostile names, the same every time, and drawn."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.report import write_report
from experiments.report.content import (
    Best,
    CurvePoint,
    CurveSet,
    HeatMap,
    RegretRow,
    ReportContent,
    Setting,
    Validation,
    Verdict,
)
from tests.helpers.browser import browser, look, wait
from tests.helpers.reports import HOSTILE, Page, policy, values
from tracekit.errors import StudyError, TracekitError

pytest.importorskip("altair", reason="altair is not installed: pip install 'moe-tracekit[report]'")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")

from experiments.report import charts, html_tables
from experiments.report.render import render

STUB = "window.vegaEmbed = null;"


def report() -> ReportContent:
    """A report with everything in it; its numbers are invented."""
    rng = np.random.default_rng(7)
    measured = rng.gamma(9, 38, size=60)
    simulated = measured * rng.normal(1.01, 0.03, size=60)
    uneven = rng.dirichlet(np.full(16, 0.6), size=6)
    uneven[0, 12:] = np.nan  # the first layer has 12 experts
    return ReportContent(
        title="Which policy to offload with",
        subtitle=(("model", "some/Model-8x7B"), ("hardware", "rtx3060")),
        rows=(
            policy("lru"),
            policy("lru", prefetch="gate", hit_ratio=0.5321, hits_prefetched=0.3789, tokens_per_second=2.741),
            policy("sieve", hit_ratio=0.2811, tokens_per_second=1.983, bytes_loaded_per_token=987e6),
            policy("belady", hit_ratio=0.4817, tokens_per_second=2.52, is_bound=True),
        ),
        curves=tuple(
            CurvePoint(
                policy=name,
                capacity=f"{slots}/layer",
                share_held=slots / 8,
                hit_ratio=(slots / 8) ** bend,
                is_bound=name == "belady",
            )
            for name, bend in (("lru", 1.6), ("sieve", 1.7), ("belady", 0.8))
            for slots in (1, 2, 4, 8)
        ),
        heat_maps=(
            HeatMap(model="some/Model-8x7B", shares=rng.dirichlet(np.full(8, 12.0), size=4)),
            HeatMap(model="other/Model", shares=uneven, layers=(1, 3, 5, 7, 9, 11)),
        ),
        validation=Validation(
            outcome="passed",
            tolerance=0.15,
            tokens_per_second_error=2.713 / 2.744 - 1,
            p99_error=0.043,
            decisions_identical=True,
            decisions=48213,
            tokens_identical=True,
            tokens=421,
            time_error_median=0.0312,
            time_error_limit=0.05,
            simulated_tokens_per_second=2.713,
            measured_tokens_per_second=2.744,
            simulated_ms=tuple(map(float, simulated)),
            measured_ms=tuple(map(float, measured)),
        ),
        warnings=("the trace is synthetic",),
        reproduce=("tracekit replay t.trace --policy lru --capacity 4/layer",),
    )


def validated(**changes: Any) -> Validation:
    """The report's validation, changed."""
    validation = report().validation
    assert validation is not None
    return replace(validation, **changes)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building Vega's bundle takes seconds; tests of anything else do without."""
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: STUB)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report") / "report.html", report())


def test_the_file_asks_for_nothing(written: Path) -> None:
    text = written.read_text("utf-8")
    page = Page(text)
    # Nothing that a browser would fetch: no source, no stylesheet, no address but links within the page.
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), attributes
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "@import" not in style and "url(" not in style
    # Outside of Vega's own code no address occurs at all.
    own = text.replace(page.scripts[1], "")
    assert len(own) < len(text) - 500_000
    assert "http://" not in own and "https://" not in own
    # Vega is inside, once, and what runs is exactly what the policy allows.
    assert text.count("window.vegaEmbed") == 1
    policy = next(tag[1]["content"] or "" for tag in page.tags if tag[1].get("http-equiv"))
    assert policy.startswith("default-src 'none';") and "unsafe-eval" not in policy
    assert re.search(r"script-src ('sha256-[^']+' ?){2};", policy)


def test_same_content_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path / "again.html", report())
    assert again.read_bytes() == written.read_bytes()
    assert list(tmp_path.iterdir()) == [again]  # no temporary file stays


def test_every_number_is_there(written: Path) -> None:
    content, text = report(), written.read_text("utf-8")
    page = Page(text)
    exact = {float(attributes["value"] or "nan") for tag, attributes in page.tags if tag == "data"}
    for row in content.rows:
        assert {row.hit_ratio, row.decode_hit_ratio, row.hits_prefetched} <= exact
        assert {row.tokens_per_second, row.bound_tokens_per_second, row.bytes_loaded_per_token} <= exact
    for point in content.curves:
        assert {point.share_held, point.hit_ratio} <= exact
    seen = set(page.words)
    assert {"53.2%", "37.9%", "2.74", "68.2%", "1.37 GB", "987 MB", "48.2%", "2.71", "\u22121.1%"} <= seen
    spoken = "".join(page.words)
    for words in (
        "48,213 entries",
        "421",
        "median error 3.1% (allowed: 5.0%)",
        "p99 of a token by +4.3%",
        "the trace is synthetic",
    ):
        assert words in spoken
    drawn = page.charts()
    assert set(drawn) == {"chart-speed", "chart-curves", "chart-heat-0", "chart-heat-1", "chart-steps"}
    cells = values(drawn["chart-heat-1"])
    shares = content.heat_maps[1].shares.ravel()
    assert np.allclose(np.where(np.isnan(shares), -1, shares), cells, rtol=1e-3)
    assert content.validation is not None
    points = {(point["simulated"], point["measured"]) for point in values(drawn["chart-steps"])}
    assert points >= set(zip(content.validation.simulated_ms, content.validation.measured_ms, strict=True))


def test_every_chart_is_said_in_words(written: Path) -> None:
    text = written.read_text("utf-8")
    for name, chart in Page(text).charts().items():
        described = chart["spec"]["description"]
        before = text[: text.index(f'id="{name}"')]
        assert len(described) > 40 and html_tables.escape(described) in before, name
        own = before[max(0, before.rfind("<details>"), before.rfind('class="chart', 0, -20)) :]
        assert re.search(r"<h[23][^>]*>[^<]+</h[23]>", own), name
    assert text.count("<details>") == 4  # the fifth chart's numbers stand open, as the verdict's table


def test_hostile_names_stay_text() -> None:
    """Model ids come from files that anyone may have written."""
    point = CurvePoint(policy=HOSTILE, capacity=HOSTILE, share_held=0.5, hit_ratio=0.5)
    row = policy(HOSTILE, prefetch=HOSTILE, low=0.9, high=1.1, device_bytes=1e9, fates=(1, 2, 3))
    setting = Setting(
        title=HOSTILE,
        statement=HOSTILE,
        verdict=HOSTILE,
        best=(Best(label=HOSTILE, value=1.0, against=HOSTILE), Best(label=f"{HOSTILE}!", value=0.5)),
        unit=HOSTILE,
        alike=HOSTILE,
        ranking=(HOSTILE,),
        verdicts=(Verdict(text=HOSTILE, shown=True),),
        notes=(HOSTILE,),
        rows=(row, replace(row, device_bytes=2e9)),
        regrets=(RegretRow(label=HOSTILE, parts=(("policy", 1.0),)),),
    )
    content = replace(
        report(),
        title=HOSTILE,
        subtitle=((HOSTILE, HOSTILE),),
        rows=(policy(HOSTILE, capacity=HOSTILE, prefetch=HOSTILE), policy(HOSTILE)),
        settings=(setting,),
        curves=(point,),
        curve_sets=(CurveSet(title=HOSTILE, points=(point,)),),
        heat_maps=(HeatMap(model=HOSTILE, shares=np.full((2, 4), 0.25)),),
        warnings=(HOSTILE,),
        reproduce=(HOSTILE,),
    )
    page = Page(render(content, STUB))
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not any(tag == "img" or any(name.startswith("on") for name in found) for tag, found in page.tags)
    assert page.scripts[1] == STUB
    assert [point["policy"] for point in values(page.charts()["chart-curves"])] == [HOSTILE]
    assert "".join(page.words).count(HOSTILE) >= 12
    # A button in the legend of the curves, of the set of curves, and of the setting's speeds.
    assert sum(found.get("data-policy") == HOSTILE for _, found in page.tags) == 3


def test_text_that_utf8_cannot_hold_is_replaced(quick: None, tmp_path: Path) -> None:
    odd = ReportContent(title="trace \udcff.trace", rows=(policy("lru \udcff"),))
    assert b"trace ?.trace" in write_report(tmp_path / "odd.html", odd).read_bytes()


def test_what_is_empty_is_left_out() -> None:
    page = Page(render(ReportContent(title="Nothing"), STUB))
    assert page.charts() == {}
    assert "section" not in [tag for tag, _ in page.tags]


def test_without_times_there_are_ratios_only() -> None:
    untimed = {"tokens_per_second": None, "bound_tokens_per_second": None, "bytes_loaded_per_token": None}
    rows = (policy("lru", decode_hit_ratio=None, **untimed), policy("belady", is_bound=True, **untimed))
    page = Page(render(ReportContent(title="Counts", rows=rows), STUB))
    assert page.charts() == {}
    assert "highest hit ratio without foresight is 31.2%, by lru" in "".join(page.words)


def test_a_bound_is_never_called_the_fastest() -> None:
    fast = policy("belady", is_bound=True, tokens_per_second=3.9)
    text = render(replace(report(), rows=(*report().rows, fast)), STUB)
    assert "Fastest without foresight is <b>lru + gate</b> at <b>2.74 tokens/s</b>, 68.2%" in text


@pytest.mark.parametrize(
    ("changes", "word", "marks"),
    [
        ({}, "Passed: simulation and engine decide alike", ["yes", "yes", "yes"]),
        (
            {"decisions_identical": False, "outcome": "failed"},
            "Failed: simulation and engine do not agree",
            ["no", "yes"],
        ),
        ({"tokens_identical": False, "outcome": "failed"}, "Failed: simulation and engine do not agree", ["yes", "no"]),
        ({"tokens_identical": None}, "Passed: simulation", ["yes", "open", "yes"]),
        (
            {"time_error_median": 0.07, "outcome": "failed"},
            "Failed: simulation and engine decide alike",
            ["yes", "yes", "no"],
        ),
        (
            {
                "tokens_per_second_error": -0.2,
                "time_error_limit": None,
                "outcome": "warned",
                "spread": "runs are apart",
            },
            "Passed with a warning: simulation and engine decide alike; tokens/s are off by \u221220.0%",
            ["yes", "yes", "warn", "open"],
        ),
        ({"simulated_ms": (), "measured_ms": ()}, "Passed: simulation and engine decide alike", ["yes", "yes", "yes"]),
    ],
)
def test_the_verdict_says_what_was_found(changes: dict[str, Any], word: str, marks: list[str]) -> None:
    text = render(replace(report(), validation=validated(**changes)), STUB)
    assert word in text
    assert re.findall(r'<li class="(\w+)"><b>', text)[: len(marks)] == marks


def test_rows_have_different_labels() -> None:
    rows = [policy("lru"), policy("lru", prefetch="gate"), policy("lru")]
    assert html_tables.row_labels(rows) == ["lru", "lru + gate", "lru (2)"]
    rows = [policy("lru"), policy("lru", capacity="25%")]
    assert html_tables.row_labels(rows) == ["lru, 4/layer", "lru, 25%"]


def test_many_policies_look_different() -> None:
    look = charts.looks({f"policy {i}": False for i in range(36)} | {"belady": True, "belady-bypass": True})
    assert len(set(look.values())) == 38
    assert look["belady"].dash and not look["policy 0"].dash


def test_numbers_keep_three_digits() -> None:
    shown = [html_tables.rate(value) for value in (0, 0.0123, 0.5, 2.0649, 9.996, 14.26, 99.96, 1530.2)]
    assert shown == ["0", "0.012", "0.50", "2.06", "10.0", "14.3", "100", "1,530"]
    assert [html_tables.percent(value) for value in (0, 0.00071, 0.4321, 1)] == [
        "0.0%",
        "0.071%",
        "43.2%",
        "100.0%",
    ]
    assert [html_tables.size(value) for value in (0, 999, 999_900, 1.374e9)] == [
        "0 B",
        "999 B",
        "1.00 MB",
        "1.37 GB",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: policy("lru", hit_ratio=1.2),
        lambda: policy("lru", tokens_per_second=float("nan")),
        lambda: policy(" "),
        lambda: CurvePoint(policy="lru", capacity="1", share_held=-0.1, hit_ratio=0.5),
        lambda: HeatMap(model="m", shares=np.zeros(3)),
        lambda: HeatMap(model="m", shares=np.full((2, 2), np.inf)),
        lambda: HeatMap(model="m", shares=np.zeros((2, 2)), layers=(1,)),
        lambda: replace(report(), curves=report().curves[:1] * 2),
        lambda: validated(measured_ms=(1.0,)),
    ],
)
def test_what_cannot_be_drawn_is_refused(make: Any) -> None:
    with pytest.raises(StudyError) as caught:
        make()
    assert "\n" not in str(caught.value)
    with pytest.raises(StudyError, match="must be a number"):
        RegretRow(label="r", parts=(("policy", float("nan")),))


def test_an_unwritable_place_is_one_line(quick: None, tmp_path: Path) -> None:
    with pytest.raises(TracekitError, match=r"cannot write .*(report.html|folder)"):
        write_report(tmp_path / "absent" / "report.html", ReportContent(title="t"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(TracekitError, match=r"cannot write .*(report.html|folder)"):
        write_report(tmp_path / "folder", ReportContent(title="t"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("absent", ["altair", "vl_convert"])
def test_without_the_extra_only_writing_fails(absent: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        f"sys.modules[{absent!r}] = None; "
        "from experiments.report import write_report; from experiments.report.content import ReportContent; "
        f"write_report(Path({str(tmp_path / 'r.html')!r}), ReportContent(title='t'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == (
        f"tracekit.errors.TracekitError: a report needs {absent}, which is not installed: "
        "pip install 'moe-tracekit[report]'"
    )


def test_a_browser_draws_highlights_and_redraws(written: Path, tmp_path: Path) -> None:
    """Every chart; a press dims the other policies in all of them; a change of the colour scheme keeps the choice."""
    names = list(Page(written.read_text("utf-8")).charts())
    with browser(tmp_path / "profile") as driver:
        look(driver, dark=False, width=1366, height=800)
        driver.get(written.as_uri())
        wait(driver, f"return document.documentElement.dataset.drawn === '{len(names)}'")
        for name in names:
            mark = driver.find_element("css selector", f"#{name} svg, #{name} canvas")
            assert mark.size["width"] > 280 and mark.size["height"] > 90, name
        driver.find_element("css selector", 'button[data-policy="sieve"]').click()
        look(driver, dark=True, width=1366, height=800)
        wait(driver, "return document.querySelectorAll('svg [fill=\"#a2aab1\"]').length > 10")  # the dark --muted
        pressed = driver.find_elements("css selector", '[aria-pressed="true"]')
        assert [button.get_attribute("data-policy") for button in pressed] == ["sieve"]
        # Of the bars, lru (twice) and belady stand back; of the lines, lru and belady.
        bars = driver.find_elements("css selector", '#chart-speed path[aria-roledescription="bar"]')
        lines = driver.find_elements("css selector", "#chart-curves path[stroke-dasharray]")
        for marks, dimmed in ((bars, 3), (lines, 2)):
            assert sum(mark.get_attribute("opacity") == "0.12" for mark in marks) == dimmed == len(marks) - 1
        assert driver.get_log("browser") == []  # no error, and nothing that the page's policy had to stop
