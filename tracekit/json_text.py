"""Why a line is not JSON: halves of surrogate pairs, which JSON can escape and no text holds, are named."""

import re

_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def why_not_json(line: bytes, error: Exception) -> str:
    """What is wrong with a line that a decoder refused with `error`."""
    half = lone_surrogate(line)
    if half is None:
        return f"is not JSON (truncated?): {error}"
    return (
        f"holds \\u{half}, one half of a surrogate pair, which is no text: whoever wrote it cut a character in two; "
        "replace it, or write the text again as UTF-8"
    )


def lone_surrogate(line: bytes) -> str | None:
    """The first escape of half a surrogate pair whose other half is not beside it, as hexadecimal digits."""
    high: tuple[str, int] | None = None  # one that waits for its other half, and where that must begin
    for found in _ESCAPE.finditer(line):
        digits = None if found[1] is None else found[1].decode().lower()
        low = digits is not None and "dc00" <= digits <= "dfff"
        paired = high is not None and low and found.start() == high[1]
        if high is not None and not paired:
            return high[0]
        if low and not paired:
            return digits
        high = (digits, found.end()) if digits is not None and "d800" <= digits < "dc00" else None
    return None if high is None else high[0]
