"""Horizontal bars with a label above each, in as many lines as it needs: nothing is cut, on a phone neither."""

from collections.abc import Mapping, Sequence

import altair as alt

from experiments.report.labels import wrapped

MOST = 12
"""More bars than this are a table."""
LINE = 17
BAR = 12
GAP = 22
CHARACTERS = 42
"""So many fit a phone's 340 pixels in the widest of usual fonts."""


class Bars:
    """The geometry of one chart of bars: every band holds its label's lines and the bar below them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.lines = max((len(wrapped(label, CHARACTERS)) for label in labels), default=1)
        self.step = LINE * self.lines + BAR + GAP
        self.height = self.step * len(labels)
        self.offset = LINE * self.lines + 5 + BAR / 2 - self.step / 2
        """From the middle of a band to the middle of its bar."""

    def base(self, values: Sequence[Mapping[str, object]]) -> alt.Chart:
        """A chart of these rows, each with its `label` and `policy`, without policies that the page's filter hides."""
        rows = [dict(row) | {"lines": self._lines(str(row["label"]))} for row in values]
        chart: alt.Chart = alt.Chart(alt.InlineData(values=rows)).transform_filter("indexof(hidden, datum.policy) < 0")
        y = alt.Y("label:N", sort=self.labels, axis=None).scale(paddingInner=0, paddingOuter=0)
        found: alt.Chart = chart.encode(y=y)
        return found

    def names(self, base: alt.Chart) -> alt.Chart:
        """The labels."""
        top = 1 - self.step / 2
        text: alt.Chart = base.mark_text(
            align="left",
            baseline="top",
            yOffset=top,
            lineBreak="\n",
            lineHeight=LINE,
            fontSize=13,
            style="ink",
            aria=False,
        )
        return text.encode(x=alt.value(0), text="lines:N")

    def _lines(self, label: str) -> str:
        """As many lines for each label, so that the last stands just above the bar."""
        found = wrapped(label, CHARACTERS)
        return "\n".join([" "] * (self.lines - len(found)) + found)
