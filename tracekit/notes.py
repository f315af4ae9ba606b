"""Notes of a manifest that are about some steps only: they name them first, `steps 3:7: ...`, and go where these go."""

import re

import numpy as np
from numpy.typing import NDArray

_ABOUT = re.compile(
    r"steps ([0-9]{1,10}):([0-9]{1,10}): (.*?)"
    r"(; tracekit slice --steps [0-9:,]+ leaves them out)?( \(cut to [0-9]+ of these steps\))?"
)


def on_steps(first: int, end: int, text: str, *, removes: bool = False) -> str:
    """A note about the steps `first` to before `end`; `removes`: with the slice that leaves them out."""
    rest = f":{first},{end}:" if first else f"{end}:"
    return f"steps {first}:{end}: {text}" + (f"; tracekit slice --steps {rest} leaves them out" if removes else "")


def is_about_steps(note: str) -> bool:
    """Whether a note is one of `on_steps`, which hold nothing but what was counted."""
    return _ABOUT.fullmatch(note) is not None


ALTERED = "routing was altered while it was recorded"
"""What a trace's notes say of choices that are not the gates' own."""


def altered_note(policy: str) -> str:
    """The note of a trace whose choices a routing policy altered."""
    return f"{ALTERED}, by {policy}: closed loop"


def is_altered(notes: list[str]) -> bool:
    """Whether a trace's choices, or some of them, are not the gates' own."""
    return any(ALTERED in note for note in notes)


def cut(notes: list[str], kept: NDArray[np.integer]) -> list[str]:
    """The notes of a trace of which only the steps `kept`, ascending, are left; partly kept ones say so."""
    found = []
    for note in notes:
        if about := _ABOUT.fullmatch(note):
            first, end = int(about[1]), int(about[2])
            left = int(np.searchsorted(kept, end) - np.searchsorted(kept, first))
            if not left:
                continue
            if left < end - first:
                note = note.removesuffix(about[5] or "") + f" (cut to {left} of these steps)"
        found.append(note)
    return found


def moved(note: str, by: int, part: str) -> str:
    """A note where its trace has become `part` of another, `by` steps later."""
    if about := _ABOUT.fullmatch(note):
        first, end = int(about[1]) + by, int(about[2]) + by
        return on_steps(first, end, f"{part}: {about[3]}", removes=about[4] is not None) + (about[5] or "")
    return f"{part}: {note}"
