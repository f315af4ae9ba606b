"""A validation as a page: what it measured and simulated, side by side, in one HTML file."""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.plan.plan import plan_from_dict
from experiments.validation.comparison import Validation
from experiments.validation.verdict import signed, spread_words

if TYPE_CHECKING:
    from experiments.report import content


def panel(validation: Validation) -> "content.Validation":
    """What a report shows of a validation."""
    from experiments.report import content

    time = validation.time
    return content.Validation(
        decisions_identical=validation.decisions.identical,
        decisions=validation.decisions.entries,
        tokens_identical=validation.tokens.identical if validation.tokens.compared else None,
        tokens=validation.tokens.compared,
        outcome=validation.judged.outcome,
        time_error_median=time.step_error_median,
        time_error_limit=validation.threshold,
        tolerance=validation.judged.tolerance,
        tokens_per_second_error=time.tokens_per_second_error,
        p99_error=time.p99_error,
        spread=spread_words(validation.judged) or "",
        simulated_tokens_per_second=time.simulated_tokens_per_second,
        measured_tokens_per_second=time.measured_tokens_per_second,
        simulated_ms=tuple(time.simulated_step_ms),
        measured_ms=tuple(time.measured_step_ms),
        simulated_runs=tuple(time.simulated_runs),
        measured_runs=tuple(time.measured_runs),
    )


def write(path: Path, validation: Validation, command: str) -> Path:
    """The page; `command` is what made it. Raises TracekitError."""
    from experiments.report import content, write_report

    usual = plan_from_dict({"cache": validation.plan["cache"]}).to_dict()
    plan = ", ".join(
        f"{table}.{key} = {value}"
        for table, keys in validation.plan.items()
        for key, value in keys.items()
        if table == "cache" or key == "policy" or usual.get(table, {}).get(key) != value
    )
    time, fates = validation.time, validation.prefetches
    notes = list(validation.warnings)
    if time.emulated_link is not None:
        notes.append(f"Copies went over a link that was slowed down to {time.emulated_link}, on both sides.")
    notes.append(
        f"Time per layer is off by {100 * time.layer_error_median:.1f} % in the median, total time by "
        f"{signed(time.total_error)}."
    )
    if validation.routing is not None:
        notes.append(f"The plan alters the model: {validation.routing.sentence()}.")
    if fates is not None and any(fates.measured.values()):
        sides = (
            f"{fate} {fates.measured[fate]} in the engine, {fates.simulated[fate]} simulated" for fate in fates.measured
        )
        notes.append(f"Prefetches: {'; '.join(sides)}.")
    return write_report(
        path,
        content.ReportContent(
            title="One plan, in the engine and in the simulator",
            subtitle=(
                ("model", validation.model),
                ("plan", plan),
                ("hardware profile", time.hardware + (", measured just before" if time.calibrated_here else "")),
                ("experts lie", validation.host),
            ),
            validation=panel(validation),
            warnings=tuple(notes),
            reproduce=(command,),
        ),
    )
