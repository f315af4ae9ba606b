"""A study's sections: for each machine the verdicts, speeds, memory, fates of prefetches, and regret."""

from html import escape

from experiments.report import charts, effect_chart, html_tables, study_charts
from experiments.report.charts import Chart, Look
from experiments.report.content import Setting
from experiments.report.parts import chart_of, legend, section

MOST_ROWS = 200


def sections(index: int, setting: Setting, look: dict[str, Look], drawn: dict[str, Chart]) -> list[str]:
    """The sections of one setting; what is not known of it is left out."""
    found = [section(f"setting-{index}", setting.title, _verdicts(setting))]
    rows = setting.rows

    def figure(kind: str, heading: str, chart: Chart, numbers: str, legend: str = "") -> None:
        again = setting.again.get(kind, "")
        inner = chart_of(f"{kind}-{index}", chart, numbers, drawn, legend, again)
        found.append(section("", "", f"<h3>{heading}</h3>{inner}"))

    if setting.effects:
        chart = effect_chart.effects(setting.effects, setting.baseline, look)
        told = "".join(f"<li>{escape(answer)}</li>" for answer in setting.answers)
        found.append(section("", "", f"<h3>Against {escape(setting.baseline)} at each cache size</h3><ul>{told}</ul>"))
        numbers = effect_chart.effect_table(setting.effects, setting.baseline)
        buttons = legend({row.policy: look[row.policy] for row in setting.effects if row.policy in look})
        figure("effects", "Effects", chart, numbers, buttons)
    timed = sorted(
        (row for row in rows if row.tokens_per_second is not None),
        key=lambda row: (not setting.fits(row), -(row.tokens_per_second or 0)),
    )
    fitting = [row for row in timed if setting.fits(row)] or timed
    if fitting:
        heading = "Tokens per second" if len(fitting) == len(timed) else "Tokens per second of the plans that fit"
        buttons = legend({row.name: look[row.name] for row in rows})
        numbers = html_tables.speed_table(fitting[:MOST_ROWS])
        figure("speed", heading, charts.speeds(fitting, look), numbers, buttons)
    sized = [row for row in timed if row.device_bytes is not None and not row.is_bound]
    if len({row.device_bytes for row in sized}) > 1:
        chart = study_charts.memory(sized, look, setting.room)
        figure("memory", "Speed against memory", chart, study_charts.memory_table(sized))
    fetched = [row for row in fitting or rows if row.fates is not None and any(row.fates) and not row.is_bound]
    if fetched:
        chart = study_charts.fates(fetched)
        figure("fates", "What became of prefetches", chart, study_charts.fates_table(fetched))
    if setting.regrets:
        heading, chart = "What keeps a step from the speed of computing alone", study_charts.regret(setting.regrets)
        figure("regret", heading, chart, study_charts.regret_table(setting.regrets))
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
    if rows:
        shown = timed[:MOST_ROWS] or list(rows[:MOST_ROWS])
        count = "" if len(shown) == len(rows) else f" The best {len(shown)} of {len(rows):,} are listed."
        text = (
            "A row is one plan over all traces, those that fit first. Hits by prefetch is the share of hits that a "
            "prefetch brought. The bound is what no policy can beat with that cache on that machine; rows marked bound "
            f"know the future.{count}"
        )
        table = f"<details><summary>Every plan</summary><p>{text}</p>{html_tables.policy_table(shown)}</details>"
        found.append(section("", "", table))
    return found


def _verdicts(setting: Setting) -> str:
    parts = [f'<p class="verdict">{escape(setting.statement)}</p>'] if setting.statement else []
    if setting.verdicts:
        items = [
            f'<li class="{"yes" if verdict.shown else "open"}">{escape(verdict.text)}</li>'
            for verdict in setting.verdicts
        ]
        parts.append(f'<ul class="checks verdicts">{"".join(items)}</ul>')
    parts += [f"<p>{escape(note[:1].upper() + note[1:])}.</p>" for note in setting.notes]
    return "\n".join(parts)
