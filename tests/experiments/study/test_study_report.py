"""The page of a study: from the example in docs/studies.md to a file that a browser draws."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments.cli.main import run as cli
from experiments.report.content import PolicyRow, RegretRow, Setting
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import StudyError

pytest.importorskip("altair", reason="altair is not installed: pip install 'moe-tracekit[report]'")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")

from experiments.report.study_charts import front

CHROMIUM = Path("/usr/bin/chromium")
DOCS = Path(__file__).resolve().parents[3] / "docs" / "studies.md"
HOSTILE = """<script>alert('x')</script><img src=x onerror="alert(1)">{{bundle}}&"""


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
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (folder / "study.toml").write_text(example)
    assert cli(["study", str(folder / "study.toml"), "--output", str(folder / "study")]) == 0
    return folder / "study"


@pytest.fixture(scope="module")
def page(studied: Path) -> Path:
    output = studied.parent / "report.html"
    assert cli(["report", str(studied), "--output", str(output)]) == 0
    return output


def specs(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_everything_is_drawn_and_said(page: Path, studied: Path) -> None:
    drawn = specs(page)
    kinds = ("speed", "memory", "fates", "regret")
    assert set(drawn) == {f"chart-{kind}-{place}" for kind in kinds for place in (0, 1)} | {"chart-curves-0"}
    text = page.read_text("utf-8")
    summary = json.loads((studied / "study.json").read_text())

    class Words(HTMLParser):
        said = ""

        def handle_data(self, data: str) -> None:
            self.said += data

    words = Words()
    words.feed(text)
    for setting in summary["settings"]:
        assert setting["statement"][1:] in words.said
        for compared in setting["comparisons"]:
            assert compared["verdict"] in words.said
    assert "tracekit study study.toml --output" in words.said and "winner.plan.toml" in words.said
    assert "no such" not in words.said
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
    assert len(spans) == min(40, len(rows))
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
    assert set(specs(tmp_path / "r.html")) == {"chart-curves-0", "chart-curves-1"}


def test_what_is_no_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} holds no finished study: no results.parquet\n"
    (tmp_path / "results.parquet").write_bytes(b"nothing of the kind")
    assert cli(["report", str(tmp_path)]) == 2
    assert "the study's results cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["results.parquet", "curves.parquet", "regret.parquet", "study.json"])
def test_files_of_two_studies_are_not_drawn_together(
    name: str, studied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an interruption may leave them; or a file with a flipped bit, on which polars may crash."""
    shutil.copytree(studied, tmp_path / "study")
    file = tmp_path / "study" / name
    if name == "study.json":
        file.write_text("{}")
    else:
        data = bytearray(file.read_bytes())
        data[-20] ^= 1
        file.write_bytes(data)
    assert cli(["report", str(tmp_path / "study"), "--output", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err
    assert "do not belong together: run tracekit study again" in said and said.count("\n") == 1


def test_hostile_names_stay_text() -> None:
    from experiments.report import CurvePoint, CurveSet, ReportContent, Verdict
    from experiments.report.render import render

    row = PolicyRow(
        name=HOSTILE,
        capacity=HOSTILE,
        prefetch=HOSTILE,
        hit_ratio=0.5,
        decode_hit_ratio=0.5,
        hits_prefetched=0.0,
        tokens_per_second=1.0,
        bound_tokens_per_second=2.0,
        bytes_loaded_per_token=1.0,
        low=0.9,
        high=1.1,
        device_bytes=1e9,
        fates=(1, 2, 3),
    )
    other = PolicyRow(**{name: getattr(row, name) for name in row.__slots__} | {"device_bytes": 2e9})
    setting = Setting(
        title=HOSTILE,
        statement=HOSTILE,
        verdicts=(Verdict(text=HOSTILE, shown=True),),
        notes=(HOSTILE,),
        rows=(row, other),
        regrets=(RegretRow(label=HOSTILE, parts=(("policy", 1.0),)),),
    )
    point = CurvePoint(policy=HOSTILE, capacity=HOSTILE, share_held=0.5, hit_ratio=0.5)
    curves = CurveSet(title=HOSTILE, points=(point,))
    text = render(ReportContent(title=HOSTILE, settings=(setting,), curve_sets=(curves,)), "window.vegaEmbed = null;")
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Tags().feed(text)
    assert tags.count("script") == 3 and "img" not in tags


def test_the_front_is_what_nothing_beats() -> None:
    def row(memory: float, speed: float) -> PolicyRow:
        return PolicyRow(
            name="p",
            capacity="4",
            prefetch="none",
            hit_ratio=0.5,
            decode_hit_ratio=0.5,
            hits_prefetched=0.0,
            tokens_per_second=speed,
            bound_tokens_per_second=None,
            bytes_loaded_per_token=None,
            device_bytes=memory,
        )

    rows = [row(3, 5), row(1, 2), row(2, 2), row(2, 3), row(3, 4), row(4, 5), row(1, 1)]
    assert [(r.device_bytes, r.tokens_per_second) for r in front(rows)] == [(1, 2), (2, 3), (3, 5)]
    with pytest.raises(StudyError, match="must be a number"):
        RegretRow(label="r", parts=(("policy", float("nan")),))


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_a_browser_draws_every_chart(page: Path, tmp_path: Path) -> None:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom --enable-logging=stderr"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    names = specs(page)
    assert f'data-drawn="{len(names)}"' in done.stdout
    for name in names:
        start = done.stdout.index(f'id="{name}"')
        assert re.search(r"<svg[^>]* width=\"\d{2,}", done.stdout[start : start + 4000]), name
