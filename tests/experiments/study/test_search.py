"""Successive halving: what it prunes, that nothing wins on a beginning, and that it resumes to the same bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from experiments.cli.main import run as cli
from experiments.study import Threads, load_study, run_study, study_from_dict
from experiments.study.schema import SEARCH_COLUMNS
from tests.helpers.studies import contents, killed_at
from tests.helpers.traces import make_trace, random_experts
from tracekit.batched import batched
from tracekit.edit import Selection, slice_trace
from tracekit.prefix import first_steps, prefix_steps
from tracekit.trace import Trace

ROOT = Path(__file__).resolve().parents[3]
TOML = """
traces = ["a.trace", "b.trace"]
regret = 1
baseline = "fifo"

[grid]
capacity = ["1/layer", "2/layer", "3/layer"]
eviction = ["lru", "lfu", "fifo", "belady"]
prefetch = ["none", {predictor = "gate", count = [1, 2]}]
weights = "hqq-2bit"
hardware = ["rtx3060", "t4"]
model_shape = "mixtral-8x7b"

[search]
rounds = 2
keep = 0.3
least = 5
"""


def traced(path: Path, seed: int, tokens: int, *, lookahead: bool = True) -> Trace:
    rng = np.random.default_rng(seed)
    logits = {1: rng.normal(size=(tokens, 2, 8)).astype(np.float16)} if lookahead else {}
    phase = (np.arange(tokens) % 50 >= 3).astype(np.uint8)
    return make_trace(
        path,
        random_experts(rng, tokens, layers=3),
        num_experts=8,
        request=np.arange(tokens) // 50,
        phase=phase,
        lookahead=logits,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("search")
    traced(place / "a.trace", 1, 400)
    traced(place / "b.trace", 2, 300)
    (place / "study.toml").write_text(TOML)
    return place


@pytest.fixture(scope="module")
def searched(folder: Path) -> Path:
    run_study(load_study(folder / "study.toml"), folder / "out", Threads(2), source=TOML)
    return folder / "out"


@pytest.mark.parametrize("steps", [1, 60, 199, 400, 1000])
def test_a_beginning_is_a_slice(folder: Path, tmp_path: Path, steps: int) -> None:
    """Against the trace that `tracekit slice` writes."""
    whole = Trace.open(folder / "a.trace")
    begun = first_steps(whole, steps)
    slice_trace(whole, Selection(steps=f"0:{steps}"), tmp_path / "s.trace")
    written = Trace.open(tmp_path / "s.trace")
    for name in ("step", "request", "position", "phase", "token_id", "experts"):
        assert (getattr(begun, name) == getattr(written, name)).all(), name
    first, second = begun.lookahead(1), written.lookahead(1)
    assert first is not None and second is not None and (first == second).all()
    assert begun.weights is None
    plan = plan_from_dict({"cache": {"capacity": "2/layer"}, "prefetch": {"predictor": "gate"}})
    assert replay(begun, plan, bounds=False).hits == replay(written, plan, bounds=False).hits
    assert (begun.manifest.tokens, begun.manifest.steps, begun.manifest.requests) == (
        written.manifest.tokens,
        written.manifest.steps,
        written.manifest.requests,
    )
    assert begun.digest != whole.digest
    assert begun.scan().collect().height == begun.tokens


def test_a_beginning_holds_its_share_of_decode_steps(folder: Path) -> None:
    whole = Trace.open(folder / "a.trace")
    decode = int((whole.phase == 1).sum())
    for share in (0.01, 0.3, 0.999, 1.0):
        begun = first_steps(whole, prefix_steps(whole, share))
        assert int((begun.phase == 1).sum()) == np.ceil(share * decode) and begun.phase[-1] == 1
    assert int((first_steps(whole, prefix_steps(whole, 0.01, 32)).phase == 1).sum()) == 32
    together = batched(whole, 4)
    begun = first_steps(together, prefix_steps(together, 0.5))
    assert begun.batching is together.batching and (begun.experts == together.experts[: begun.tokens]).all()


def test_every_round_is_what_a_sort_of_replays_says(folder: Path, searched: Path) -> None:
    """Halving by hand: replays of sliced traces, a sort, the best share, the bounds and the baseline's."""
    found = pl.read_parquet(searched / "search.parquet")
    assert found["round"].unique().sort().to_list() == [1, 2]
    study = load_study(folder / "study.toml")
    traces = [Trace.open(folder / name) for name in ("a.trace", "b.trace")]
    for machine in study.machines:
        assert machine is not None
        left = list(study.plans)
        for number, share in ((1, 0.3**2), (2, 0.3)):
            begun = [first_steps(trace, prefix_steps(trace, share, 32)) for trace in traces]
            speeds = {}
            for plan in left:
                times = [replay(part, plan, machine, model_shape="mixtral-8x7b", bounds=False) for part in begun]
                tokens = [result.phases.decode.tokens for result in times]
                rates = [result.time.tokens_per_second or 0.0 for result in times if result.time is not None]
                speeds[plan.to_toml()] = sum(tokens) / sum(n / r for n, r in zip(tokens, rates, strict=True))
            own = found.filter((pl.col("round") == number) & (pl.col("hardware") == machine.name))
            assert own["plan_toml"].to_list() == list(speeds)
            assert own["value"].to_list() == pytest.approx(list(speeds.values()))
            real = [plan for plan in left if plan.eviction.policy != "belady"]
            ranked = sorted(real, key=lambda plan: -speeds[plan.to_toml()])
            kept = ranked[: max(5, int(np.ceil(0.3 * len(real))))]
            rival = next(plan for plan in ranked if plan.eviction.policy == "fifo")
            bounds = [plan for plan in left if plan.eviction.policy == "belady"]
            beside = [
                next(
                    p for p in left if p.eviction.policy == "fifo" and (p.cache, p.weights) == (one.cache, one.weights)
                )
                for one in kept
            ]
            on = {plan.to_toml() for plan in [*kept, rival, *beside, *bounds]}
            said = set(own.filter(pl.col("outcome").is_in(["kept", "baseline", "bound"]))["plan_toml"])
            # Equally fast plans go by memory: as fast as the last is as good as the last.
            last = speeds[kept[-1].to_toml()]
            assert said ^ on <= {toml for toml, speed in speeds.items() if speed == last}
            left = [plan for plan in left if plan.to_toml() in said]
        rows = pl.read_parquet(searched / "results.parquet").filter(pl.col("hardware") == machine.name)
        assert list(dict.fromkeys(rows["plan_toml"])) == [plan.to_toml() for plan in left]


def test_nothing_wins_on_a_beginning(folder: Path, searched: Path) -> None:
    """The winner's figures, and those of all it is compared with, are of the whole traces."""
    summary = json.loads((searched / "study.json").read_text())
    rows = pl.read_parquet(searched / "results.parquet")
    whole = sum(int((Trace.open(folder / name).phase == 1).sum()) for name in ("a.trace", "b.trace"))
    tokens = rows.group_by("hardware", "plan_toml").agg(pl.col("decode_tokens").sum())["decode_tokens"]
    assert set(tokens) == {whole}
    for setting in summary["settings"]:
        own = rows.filter(pl.col("hardware") == setting["hardware"])
        best = own.group_by("plan_toml").agg((pl.col("decode_tokens") / pl.col("tokens_per_second")).sum().alias("s"))
        real = best.filter(~pl.col("plan_toml").str.contains("belady"))
        assert real.filter(pl.col("plan_toml") == setting["plan_toml"])["s"][0] == real["s"].min()
        assert setting["statement"].startswith(f"best of {len(real)} plans at full length: ")
        assert {found["second"].split(",")[0] for found in setting["comparisons"]} >= {"fifo"}


def test_what_was_pruned_is_told(folder: Path, searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["study", str(folder / "study.toml"), "--output", str(searched)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    (note, _) = [
        next(note for note in setting["notes"] if note.startswith("search: "))
        for setting in json.loads((searched / "study.json").read_text())["settings"]
    ]
    assert note in said and " of 36 plans were pruned on the first 9 % and 30 % of the decode steps" in note
    assert "first pruned" in said
    page = (ROOT / "docs" / "studies.md").read_text()
    for name, _, words in SEARCH_COLUMNS:
        assert f"| `{name}` | {words} |" in page, name


def test_one_thread_resumed_after_kills_leaves_the_same_bytes(folder: Path, searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert killed_at((3, 60, 75), folder / "study.toml", out, workers=1) >= 2
    run_study(load_study(folder / "study.toml"), out, Threads(1), source=TOML)
    assert contents(out) == contents(searched)


def test_too_large_and_failing_plans_take_no_ones_place(folder: Path, tmp_path: Path) -> None:
    """What does not fit is pruned at once; what cannot be replayed is reported as ever."""
    traced(tmp_path / "plain.trace", 3, 300, lookahead=False)
    grid: dict[str, Any] = {"capacity": ["1/layer", "2/layer", "7/layer"], "eviction": ["lru", "fifo"]}
    grid |= {"prefetch": ["none", "gate"], "hardware": "t4", "model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
    tables = {"traces": str(tmp_path / "plain.trace"), "regret": 0, "bounds": False, "grid": grid}
    tables |= {"search": {"rounds": 1, "keep": 0.5, "least": 1}, "max_device_bytes": "8GiB"}
    summary = run_study(study_from_dict(tables), tmp_path / "out", Threads(1))
    (setting,) = summary.settings
    (only,) = setting.search
    assert (only.plans, only.failed, only.too_large) == (12, 6, 2)
    assert (only.kept, only.pruned) == (2, 2)
    assert summary.failed == 6 and summary.cells == 8
    # A limit that nothing fits is said as it is without a search.
    summary = run_study(study_from_dict(tables | {"max_device_bytes": 1}), tmp_path / "none", Threads(1))
    assert "no plan fits" in summary.settings[0].statement


def test_short_traces_are_replayed_whole(folder: Path, tmp_path: Path) -> None:
    traced(tmp_path / "short.trace", 4, 30)
    grid = {"capacity": "2/layer", "eviction": ["lru", "fifo", "lfu"]}
    tables: dict[str, Any] = {"traces": str(tmp_path / "short.trace"), "grid": grid}
    summary = run_study(study_from_dict(tables | {"search": {"least": 1}}), tmp_path / "out", Threads(1))
    assert summary.cells == 3 and summary.settings[0].search == []
