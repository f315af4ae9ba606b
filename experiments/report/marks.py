"""Marks of legends, as SVG."""

# Unit paths of the marks that Vega draws, for a legend of plain buttons (16 x 16).
MARKS = {
    "circle": '<circle cx="8" cy="8" r="4.5"/>',
    "square": '<path d="M4 4h8v8h-8z"/>',
    "triangle-up": '<path d="M8 3l5.5 9.5h-11z"/>',
    "triangle-down": '<path d="M8 13l5.5-9.5h-11z"/>',
    "diamond": '<path d="M8 2.5l4.5 5.5-4.5 5.5-4.5-5.5z"/>',
    "cross": '<path d="M6.3 3h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z"/>',
}


def swatch(colour: str) -> str:
    """A square of one colour."""
    path = f'<path d="M0 0h12v12H0z" fill="{colour}"/>'
    return f'<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">{path}</svg>'
