"""One plan in the engine and in the simulator, on the page: the verdict first, then both sides."""

from html import escape

from experiments.report import charts, html_tables
from experiments.report.charts import Chart
from experiments.report.content import Validation

HEADLINES = {
    "passed": ("yes", "Passed"),
    "warned": ("warn", "Passed with a warning"),
    "failed": ("no", "Failed"),
}


def verdict(validation: Validation, drawn: dict[str, Chart]) -> str:
    """The section's inside; the chart of steps is added to `drawn`."""
    state, word = HEADLINES[validation.outcome]
    exact = validation.decisions_identical and validation.tokens_identical is not False
    agree = "simulation and engine decide alike" if exact else "simulation and engine do not agree"
    rate, tail = html_tables.signed(validation.tokens_per_second_error), html_tables.signed(validation.p99_error)
    median = html_tables.percent(validation.time_error_median)
    parts = [
        f'<p class="verdict {state}">{word}: {agree}; tokens/s are off by {rate}, the p99 of a token by {tail}, '
        f"a token by {median} in the median.</p>",
        f'<ul class="checks">{"".join(_findings(validation))}</ul>',
        html_tables.validation_table(validation),
    ]
    if validation.simulated_ms:
        chart = charts.steps(validation)
        drawn["chart-steps"] = chart
        parts.append(f"<h3>Time of each decode step</h3><p>{escape(chart.sentence)}</p>")
        parts.append('<div class="chart small" id="chart-steps" style="min-height:390px"></div>')
    return "\n".join(parts)


def _findings(validation: Validation) -> list[str]:
    same = {True: "identical, ", False: "different, "}
    decisions = f"{same[validation.decisions_identical]}{validation.decisions:,} entries"
    compared = validation.tokens_identical
    tokens = "not compared" if compared is None else f"{same[compared]}{validation.tokens:,}"
    limit, tolerance = validation.time_error_limit, html_tables.percent(validation.tolerance)
    time = f"off by {html_tables.percent(validation.late)}, tolerance {tolerance}"
    timely = "yes" if validation.late <= validation.tolerance else "warn"
    if limit is not None:
        median = html_tables.percent(validation.time_error_median)
        time += f"; median error {median} (allowed: {html_tables.percent(limit)})"
        timely = "no" if validation.time_error_median > limit else timely
    found = [
        ("yes" if validation.decisions_identical else "no", "Decision logs", decisions),
        ("open" if compared is None else "yes" if compared else "no", "Generated tokens", tokens),
        (timely, "Time", time),
    ]
    if validation.spread:
        found.append(("open", "Runs", validation.spread))
    return [f'<li class="{state}"><b>{what}</b> {escape(text)}</li>' for state, what, text in found]
