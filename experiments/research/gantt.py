"""A picture of a token's timeline, for documents: one bar for each piece of work, in the lane that did it.

python -m experiments.research.gantt T.trace --plan P.toml --hardware rtx3060 --steps A:B --output F.png
"""

import argparse
import sys
from pathlib import Path

import altair as alt
import numpy as np

from engine.plan.plan import load_plan
from engine.replay.bars import COLOURS, LANES, bars
from engine.replay.chrome_trace import timeline_window
from engine.replay.passes import Replayed
from engine.replay.replay import replay
from engine.simulator import log
from tracekit.demand import step_starts
from tracekit.trace import Trace


def picture(rows: np.ndarray, layers: int, experts: int, title: str) -> alt.TopLevelMixin:
    """The chart: lanes over time, a rule where each visit begins. `rows` is the simulator's log."""
    records = bars(rows, experts)
    lanes = [lane for lane in LANES if any(r["lane"] == lane for r in records)]
    length = max((r["end"] for r in records), default=1.0)
    first = rows[rows[:, log.WHAT] == log.DENSE_PART]
    origin = int(rows[:, log.BEGIN].min(initial=2**62))
    visits = [
        {"at": (row[log.BEGIN] - origin) / 1e6, "layer": f"layer {row[log.VISIT] % layers}"} for row in first.tolist()
    ]
    y = alt.Y("lane:N", sort=lanes, title=None)
    x = alt.X("begin:Q", title="milliseconds", scale=alt.Scale(domain=[0, length], nice=False))
    kinds = [kind for kind in COLOURS if any(r["kind"] == kind for r in records)]
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[COLOURS[kind] for kind in kinds]),
        legend=alt.Legend(orient="bottom", columns=4, symbolStrokeWidth=1),
    )
    work = alt.Chart(alt.InlineData(values=records)).mark_bar(stroke="#444", strokeWidth=0.5, height=34)
    # Only what fits into its bar.
    fitting = [r for r in records if r["end"] - r["begin"] > length * max(1, len(r["label"])) / 140]
    text = alt.Chart(alt.InlineData(values=fitting))
    rules = alt.Chart(alt.InlineData(values=visits))
    return alt.layer(
        rules.mark_rule(strokeDash=[3, 3], color="#888").encode(x="at:Q"),
        work.encode(x=x, x2="end:Q", y=y, color=colour),
        text.mark_text(fontSize=10).encode(
            x="middle:Q",
            y=y,
            text="label:N",
            color=alt.condition("datum.kind === 'expert'", alt.value("white"), alt.value("#222")),
        ),
        rules.mark_text(align="left", dx=3, y=-6, fontSize=10, color="#666").encode(x="at:Q", text="layer:N"),
    ).properties(width=900, height=60 * len(lanes), title=alt.Title(title, anchor="start", offset=14))


def main(arguments: list[str]) -> int:
    """Replay a plan on a trace and draw the chosen steps."""
    parser = argparse.ArgumentParser(prog="python -m experiments.research.gantt", description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--model-shape")
    parser.add_argument("--steps", default=None, help="A:B by running number")
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    trace, plan = Trace.open(chosen.trace), load_plan(chosen.plan)
    window = timeline_window(chosen.steps, len(step_starts(trace.step)) - 1)
    logged: list[np.ndarray] = []

    def keep(done: Replayed) -> None:
        assert done.timeline is not None
        logged.append(done.timeline.log)

    replay(
        trace,
        plan,
        chosen.hardware,
        model_shape=chosen.model_shape,
        bounds=False,
        log=window,
        on_done=keep,
    )
    shape = f" at {chosen.model_shape}'s shape" if chosen.model_shape else ""
    title = f"Step {window.start} of {trace.manifest.model.id} on {chosen.hardware}{shape}; numbers are experts"
    picture(logged[0], trace.layers, trace.num_experts, title).save(chosen.output, scale_factor=1.5)
    return 0


if __name__ == "__main__":
    from experiments.cli.main import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))
