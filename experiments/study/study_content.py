"""A finished study as the content of a report."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TypedDict

import msgspec
import numpy as np
import polars as pl

from experiments.quality.measurement import loss_text
from experiments.report.content import (
    Best,
    BetterRow,
    PolicyRow,
    RegretRow,
    ReportContent,
    SearchRound,
    TokenTimeline,
    Validation,
    Verdict,
    Work,
)
from experiments.report.content import Setting as Drawn
from experiments.report.effect import Effect
from experiments.report.html_tables import rate
from experiments.report.labels import labels, shared
from experiments.statistics.comparison import rate_intervals
from experiments.study import study_folder as files
from experiments.study.contestants import loss_of_row, overall, plan_of
from experiments.study.effects import SAID
from experiments.study.grid import eviction_name, stored_name
from experiments.study.leaders import plan_parts
from experiments.study.schema import BETTER
from experiments.study.study_file import Statistics
from experiments.study.study_folder import read_study
from experiments.study.study_json import Round, SettingSummary, Summary
from experiments.study.trace_overviews import curve_sets, heat_maps
from experiments.validation import comparison
from experiments.validation.page import panel
from tracekit.errors import StudyError
from tracekit.opening import read_file

MOST_PLANS, MOST_VALIDATION_BYTES = 2000, 256 << 20
FATES = ("prefetch_useful", "prefetch_late", "prefetch_wasted")


def report_content(folder: Path, validation: Path | None = None) -> ReportContent:
    """What the report of the study in `folder` says; and of its winner in the engine, if that was validated.

    `validation`: what `tracekit validate --json` printed; None: the file in the study's folder, if there is one. Raises
    StudyError when there is no study, it is unfinished, or the validation cannot be read.
    """
    tables, summary = read_study(folder)
    rows = tables[files.RESULTS]
    sound = rows.filter(pl.col("error").is_null())
    warnings = summary.warnings + [
        f"{error.cells} of {summary.cells} cells could not be replayed: {error.error} (first: {error.first_plan})"
        for error in summary.errors
    ]
    machines = summary.provenance.hardware
    if assumed := [machine.name for machine in machines if not machine.calibrated]:
        warnings.append(f"data sheets and stated assumptions, not measurements: {', '.join(assumed)}")
    plans, searched = len(set(rows["plan_toml"])), len(set(tables[files.SEARCH]["plan_toml"]))
    return ReportContent(
        title="Expert offloading: "
        + (f"{searched:,} plans searched, {plans:,} compared" if searched else f"{plans:,} plans compared"),
        subtitle=(
            ("traces", ", ".join(Path(trace).name for trace in dict.fromkeys(rows["trace"]))),
            ("machines", ", ".join(machine.name for machine in machines) or "none: hits and bytes only"),
            ("objective", summary.objective.replace("_", " ")),
            ("cells", f"{summary.cells:,}, {summary.failed:,} failed"),
        ),
        settings=tuple(_setting(found, sound, tables, summary) for found in summary.settings),
        curve_sets=tuple(curve_sets(tables[files.CURVES], sound, summary.statistics.level)),
        heat_maps=tuple(heat_maps(tables[files.EXPERTS])),
        validation=_validated(folder, validation),
        warnings=tuple(warnings),
        reproduce=_commands(folder, summary),
    )


def _validated(study: Path, given: Path | None) -> Validation | None:
    path = study / files.VALIDATION if given is None else given
    if given is None and not path.exists():
        return None
    try:
        found = msgspec.json.decode(read_file(path, MOST_VALIDATION_BYTES), type=comparison.Validation)
    except OSError as problem:
        raise StudyError(f"cannot read the validation {path}: {problem.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise StudyError(f"{path} is not what tracekit validate --json prints: {problem}") from None
    return panel(found)


def _setting(found: SettingSummary, sound: pl.DataFrame, tables: dict[str, pl.DataFrame], summary: Summary) -> Drawn:
    rows = found.conditions.rows_of(sound)
    plans = rows.partition_by("plan_toml", maintain_order=True)
    traces = max((len(part) for part in plans), default=0)
    whole = [part for part in plans if len(part) == traces]
    if len(whole) > MOST_PLANS:
        room = np.inf if found.room_bytes is None else found.room_bytes

        def place(part: pl.DataFrame) -> tuple[bool, float]:
            large = part["device_bytes"].fill_null(0).to_numpy().max() > room
            return bool(large), -(_rate(part, "tokens_per_second") or 0.0)

        whole = sorted(whole, key=place)[:MOST_PLANS]
    intervals = _intervals(whole, summary.statistics)
    formats = len({stored_name(plan_of(toml)) for toml in rows["plan_toml"].unique()}) > 1
    title = str(found.conditions)
    return Drawn(
        title=title if found.hardware else title[:1].upper() + title[1:],
        statement=_sentence(found.statement),
        verdict=_sentence(found.verdict),
        best=tuple(
            Best(
                label=leader.name,
                value=leader.value,
                within="" if leader.ends is None else f"{rate(leader.ends[0])} to {rate(leader.ends[1])}",
                device_bytes=leader.device_bytes,
                share_of_bound=leader.share_of_bound,
                against=leader.words,
                sure=None if leader.outcome is None else leader.outcome in ("better", "worse"),
                loss="" if leader.loss is None else loss_text(leader.loss),
            )
            for leader in found.best
        ),
        unit=found.unit or "",
        modelled=found.modelled,
        alike=found.alike,
        ranking=tuple(found.ranking),
        verdicts=tuple(
            Verdict(text=compared.verdict, shown=compared.outcome in ("better", "worse"))
            for compared in found.comparisons
        ),
        **_effects(found.conditions.rows_of(tables[files.EFFECTS]), formats),
        answers=tuple(found.answers),
        notes=tuple(found.notes),
        room=found.room_bytes,
        most_loss=summary.quality_loss,
        rows=tuple(_row(part, None if intervals is None else intervals[place]) for place, part in enumerate(whole)),
        regrets=tuple(_regrets(rows, tables[files.REGRET])),
        better=tuple(_better(rows, tables[files.REGRET])),
        search=tuple(_round(one) for one in found.search),
        timeline=_timeline(found.conditions.rows_of(tables[files.TIMELINE])),
        again=_again(found, rows),
    )


class _Effects(TypedDict):
    baseline: str
    effects: tuple[Effect, ...]


def _effects(rows: pl.DataFrame, formats: bool) -> _Effects:
    """Each plan against the baseline; `formats`: caches are told apart by how experts are stored, too."""
    found = tuple(
        Effect(
            policy=eviction_name(plan_of(row["plan_toml"])),
            label=row["policy"],
            cache=row["capacity"] + (f", {row['weights']}" if formats and row["weights"] else ""),
            points=row["quantity"] == "hit ratio",
            is_bound=row["needs_future"],
            outcome=SAID.get(row["outcome"], row["outcome"]),
            **{name: row[name] for name in ("effect", "low", "high", "requests", "effective")},
        )
        for row in rows.iter_rows(named=True)
    )
    return {"baseline": rows["baseline"][0] if len(rows) else "", "effects": found}


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "." if words else ""


def _round(found: Round) -> SearchRound:
    counts = {name: getattr(found, name) for name in ("share", "plans", "kept", "pruned", "too_large", "failed")}
    return SearchRound(**counts, last_kept=str(found.last_kept or ""), first_pruned=str(found.first_pruned or ""))


def _timeline(own: pl.DataFrame) -> TokenTimeline | None:
    if len(own) == 0:
        return None
    first = own.row(0, named=True)
    part = "" if first["layers"] == first["of_layers"] else f", its first {first['layers']} of {first['of_layers']}"
    part += " MoE layers" if part else ""
    title = f"Decode step {first['step']} of {Path(first['trace']).name} under {first['plan']}{part}"
    bars = own.select("lane", "kind", "label", "layer", begin="begin_ms", end="end_ms")
    return TokenTimeline(title=title, bars=tuple(Work(**row) for row in bars.iter_rows(named=True)))


def _again(found: SettingSummary, rows: pl.DataFrame) -> dict[str, str]:
    """How to make the figures of one setting again."""
    if found.winner is None or len(rows) == 0:
        return {}
    own = rows.filter(pl.col("plan_toml") == found.plan_toml)
    trace = own["trace"][0] if len(own) else rows["trace"][0]
    replayed = f"tracekit replay {quote(trace)} --plan PLAN.toml{found.conditions.options}"
    where = "# PLAN.toml: the column plan_toml of results.parquet; the picture: tracekit report DIR --figures FIGURES"
    one = f"{where}\n{replayed}"
    return {
        "speed": f"# a bar; its interval is of request_ns in results.parquet\n{one}",
        "memory": f"# a point\n{one}",
        "quality": f"# a point; its loss is what tracekit quality measured\n{one}",
        "fates": f"# a bar\n{one}",
        "regret": f"# a bar, as `regret`\n{one} --json",
        "timeline": f"# in ui.perfetto.dev, with all layers\n{one} --timeline T.json.gz",
    }


def _rate(part: pl.DataFrame, column: str) -> float | None:
    """Tokens per second over several traces; None where one of them has none."""
    return None if part[column].null_count() else overall(part, column)


def _intervals(plans: Sequence[pl.DataFrame], statistics: Statistics) -> np.ndarray | None:
    if not plans or any(part["request_ns"].null_count() for part in plans):
        return None
    tokens = np.concatenate([row.to_numpy() for row in plans[0]["request_tokens"]])
    times = np.stack([np.concatenate([row.to_numpy() for row in part["request_ns"]]) for part in plans])
    return rate_intervals(tokens, times.astype(np.float64), level=statistics.level)


def _row(part: pl.DataFrame, interval: np.ndarray | None) -> PolicyRow:
    parts = plan_parts(plan_of(part["plan_toml"][0]))
    total = {
        name: None if part[name].null_count() else int(part[name].sum())
        for name in ("hits", "lookups", "decode_hits", "decode_lookups", "hits_prefetch", "decode_tokens", *FATES)
    }
    loaded = None
    if not part["decode_bytes_loaded"].null_count() and total["decode_tokens"]:
        scaled = part["decode_bytes_loaded"] * part["time_scale"].fill_null(1.0)
        loaded = float(scaled.sum()) / total["decode_tokens"]
    fates, lost = tuple(total[name] for name in FATES), loss_of_row(part)
    return PolicyRow(
        name=parts["eviction"],
        capacity=parts["capacity"],
        prefetch=parts["prefetch"] or "none",
        routing=parts["routing"],
        weights=parts["weights"],
        kernels=parts["kernels"],
        lane=parts["lane"],
        hit_ratio=_ratio(total["hits"], total["lookups"]),
        decode_hit_ratio=_ratio(total["decode_hits"], total["decode_lookups"]),
        hits_prefetched=_ratio(total["hits_prefetch"], total["hits"]),
        tokens_per_second=_rate(part, "tokens_per_second"),
        bound_tokens_per_second=None if parts["routing"] else _rate(part, "bound_tokens_per_second"),
        bytes_loaded_per_token=loaded,
        is_bound=bool(part["needs_future"][0]),
        low=None if interval is None else float(interval[0]),
        high=None if interval is None else float(interval[1]),
        device_bytes=None if part["device_bytes"].null_count() else float(max(part["device_bytes"])),
        fates=None if None in fates else (fates[0] or 0, fates[1] or 0, fates[2] or 0),
        loss=None if lost is None else lost.value,
        loss_low=None if lost is None else lost.low,
        loss_high=None if lost is None else lost.high,
    )


def _ratio(part: int | None, whole: int | None) -> float:
    return part / whole if part and whole else 0.0


def _regrets(rows: pl.DataFrame, regret: pl.DataFrame) -> list[RegretRow]:
    """The best plans' regret, of each trace."""
    found = list(regret.join(rows, on="cell", how="inner", maintain_order="left").iter_rows(named=True))
    plans = [plan_of(row["plan_toml"]) for row in found]
    parts = [plan_parts(plan) for plan in plans]
    if len({row["trace"] for row in found}) > 1:
        parts = [part | {"trace": f"on {Path(row['trace']).name}"} for part, row in zip(parts, found, strict=True)]
    columns = [name for name in regret.columns if name.endswith("_ns") and name != "total_ns"]
    return [
        RegretRow(
            label=label,
            parts=tuple(
                (name.removesuffix("_ns").replace("_", " "), row[name] / row["steps"] / 1e6) for name in columns
            ),
            policy=eviction_name(plan),
            alike=shared(parts) if len(parts) > 1 else "",
        )
        for label, plan, row in zip(labels(parts), plans, found, strict=True)
    ]


def _better(rows: pl.DataFrame, regret: pl.DataFrame) -> list[BetterRow]:
    """The best plans' sensitivities, of each trace."""
    found = []
    several = rows["trace"].n_unique() > 1
    for row in regret.join(rows, on="cell", how="inner", maintain_order="left").iter_rows(named=True):
        speeds = [(part.replace("_", " "), times, row[column]) for (part, times), column in BETTER.items()]
        if row["tokens_per_second"] is not None and all(speed is not None for *_, speed in speeds):
            label = row["plan"] + (f" on {Path(row['trace']).name}" if several else "")
            policy = eviction_name(plan_of(row["plan_toml"]))
            found.append(BetterRow(label=label, now=row["tokens_per_second"], better=tuple(speeds), policy=policy))
    return found


def _commands(folder: Path, summary: Summary) -> tuple[str, ...]:
    place = quote(str(folder))
    commands = [f"tracekit study {files.COPY} --output {place}", f"tracekit report {place} --output R.html"]
    winner = next((found for found in summary.settings if found.winner is not None), None)
    if winner is not None:
        trace = next(iter(summary.provenance.traces))
        plan = quote(str(folder / files.WINNER))
        commands.append(f"tracekit replay {quote(trace)} --plan {plan}{winner.conditions.options}")
    return tuple(commands)
