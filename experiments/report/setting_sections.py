"""What a report says about one setting of a study: first the answer, in words and a table; further down the charts."""

from html import escape

from experiments.report import charts, effect_chart, html_tables, quality_chart, study_charts
from experiments.report.causes import explained
from experiments.report.charts import Chart, Look
from experiments.report.content import Setting
from experiments.report.parts import chart_of, legend, section, swatches
from experiments.statistics.speeds import MODELLED

MOST_ROWS = 200


def answer(index: int, setting: Setting) -> str:
    """Who won, how sure that is, the best plans, and what to keep in mind."""
    parts = [f'<p class="verdict">{escape(setting.statement)}</p>'] if setting.statement else []
    if setting.verdict:
        parts.append(f"<p>{escape(setting.verdict)}</p>")
    if setting.best:
        parts.append(html_tables.best_table(setting.best, setting.unit))
        alike = [setting.alike] if setting.alike and len(setting.best) > 1 else []
        if said := [*alike, *([MODELLED] if setting.modelled else [])]:
            parts.append(f'<p class="small">All of these: {escape(", ".join(said))}.</p>')
    if setting.answers:
        told = "".join(f"<li>{escape(answer)}</li>" for answer in setting.answers)
        parts.append(f"<h3>Against {escape(setting.baseline)} at each cache size</h3><ul>{told}</ul>")
    if setting.notes:
        notes = "".join(f"<li>{escape(note[:1].upper() + note[1:])}.</li>" for note in setting.notes)
        parts.append(f'<ul class="small">{notes}</ul>')
    return section(f"setting-{index}", setting.title, "\n".join(parts))


def details(index: int, setting: Setting, look: dict[str, Look], drawn: dict[str, Chart]) -> list[str]:
    """The charts of one setting, its comparisons and every plan; what is not known of it is left out."""
    found: list[str] = []
    rows = setting.rows

    def figure(kind: str, heading: str, chart: Chart, numbers: str, legend: str = "") -> None:
        again = setting.again.get(kind, "")
        inner = chart_of(f"{kind}-{index}", chart, numbers, drawn, legend, again)
        found.append(section("", "", f"<h3>{heading}</h3>{inner}"))

    if setting.effects:
        chart = effect_chart.effects(setting.effects, setting.baseline, look)
        numbers = effect_chart.effect_table(setting.effects, setting.baseline)
        buttons = legend({row.policy: look[row.policy] for row in setting.effects if row.policy in look})
        figure("effects", f"Against {escape(setting.baseline)} at each cache size", chart, numbers, buttons)
    timed = sorted(
        (row for row in rows if row.tokens_per_second is not None),
        key=lambda row: (not setting.may_win(row), not setting.fits(row), -(row.tokens_per_second or 0)),
    )
    fitting = [row for row in timed if setting.fits(row)] or timed
    allowed = [row for row in fitting if setting.may_win(row)] or fitting
    if allowed:
        some = any(map(setting.fits, allowed)) and not all(map(setting.fits, rows))
        heading = "Tokens per second of the plans that fit" if some else "Tokens per second"
        if len(allowed) < len(fitting):
            heading += (
                " and lose no more than is allowed" if some else " of the plans that lose no more than is allowed"
            )
        heading += f", {MODELLED}" if setting.modelled else ""
        chart = charts.speeds(allowed, look)
        numbers = html_tables.speed_table(allowed[:MOST_ROWS])
        figure("speed", heading, chart, numbers, legend({row.name: look[row.name] for row in rows}))
    sized = [row for row in timed if row.device_bytes is not None and not row.is_bound]
    if len({row.device_bytes for row in sized}) > 1:
        chart = study_charts.memory(sized, look, setting.room)
        figure("memory", "Speed against memory", chart, study_charts.memory_table(sized))
    lossy = [row for row in fitting if row.loss is not None and not row.is_bound]
    if len({row.loss for row in lossy}) > 1:
        chart = quality_chart.frontier(lossy, setting.most_loss)
        figure("quality", "Speed against quality", chart, quality_chart.frontier_table(lossy))
    fetched = [row for row in allowed or rows if row.fates is not None and any(row.fates) and not row.is_bound]
    if fetched:
        chart = study_charts.fates(fetched)
        numbers = study_charts.fates_table(fetched[:MOST_ROWS])
        figure("fates", "What became of prefetches", chart, numbers, swatches(dict(study_charts.FATES)))
    if setting.regrets:
        heading, chart = "What keeps a step from the speed of computing alone", study_charts.regret(setting.regrets)
        words = explained(study_charts.causes(setting.regrets))
        figure("regret", heading, chart, study_charts.regret_table(setting.regrets), words)
    if setting.better:
        found.append(section("", "", study_charts.better_section(setting.better)))
    if setting.timeline is not None and setting.timeline.bars:
        chart = study_charts.timeline(setting.timeline)
        figure("timeline", "One token", chart, study_charts.timeline_table(setting.timeline))
    if setting.search:
        text = (
            "Most plans were replayed on a beginning of the traces only, and the best of each round went on. Nothing "
            "is concluded from a beginning: what was pruned might have won."
        )
        inner = f"<h3>What the search pruned</h3><p>{text}</p>{study_charts.search_table(setting.search)}"
        found.append(section("", "", inner))
    unfolded = _comparisons(setting)
    if rows:
        shown = timed[:MOST_ROWS] or list(rows[:MOST_ROWS])
        count = "" if len(shown) == len(rows) else f" The best {len(shown)} of {len(rows):,} are listed."
        text = (
            "A row is one plan over all traces, those that may win first. Hits by prefetch is the share of hits that a "
            "prefetch brought. The bound is what no plan can beat with that cache on that machine and engine; rows "
            f"marked foresight know the future.{count}"
        )
        table = html_tables.policy_table(shown)
        unfolded.append(f"<details><summary>Every plan</summary><p>{text}</p>{table}</details>")
    if unfolded:
        found.append(section("", "", "\n".join(unfolded)))
    if found:
        found.insert(0, section(f"details-{index}", f"Details: {setting.title}", ""))
    return found


def _comparisons(setting: Setting) -> list[str]:
    """The ranking and every comparison, to unfold."""
    found = []
    if setting.ranking:
        lines = "".join(f"<li>{escape(line)}</li>" for line in setting.ranking)
        found.append(f'<details><summary>Ranking</summary><ul class="checks verdicts">{lines}</ul></details>')
    if setting.verdicts:
        items = "".join(
            f'<li class="{"yes" if verdict.shown else "open"}">{escape(verdict.text)}</li>'
            for verdict in setting.verdicts
        )
        found.append(f'<details><summary>Every comparison</summary><ul class="checks verdicts">{items}</ul></details>')
    return found
