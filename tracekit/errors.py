"""Every error a user can cause, as one tree. The message is one line: the input, what is wrong, the mend.

TracekitError
├── TraceError              not a trace, truncated, corrupted, wrong version
├── ImportFormatError       a foreign file is not what it claims to be
├── PlanError               a plan that cannot be read or makes no sense
│   └── CapacityError       a capacity that cannot be read or does not fit
├── PolicyError             an eviction policy or prefetcher that is unknown or breaks its contract
├── HardwareError           a hardware profile that cannot be read or makes no sense
├── ShapeError              a model shape that cannot be read or does not match its trace
├── ModelError              a model that cannot be loaded, served or recorded
└── StudyError              a study that cannot be read, run or resumed
"""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_QUOTED = 200
"""Characters of one word or value in a message."""
MOST_SAID = 1_000
"""Characters of a message."""


class TracekitError(Exception):
    """Base of all errors meant for users. `str(error)` is always a single line."""

    def __init__(self, message: object = "") -> None:
        # Messages quote file names, values of files and the words of other libraries, which may hold anything.
        super().__init__(one_line(message))


class TraceError(TracekitError):
    """A trace is absent, truncated, corrupted, or of a version this release cannot read."""


class ImportFormatError(TracekitError):
    """A foreign file is not what its format says, or the format is unknown."""


class PlanError(TracekitError):
    """A plan cannot be read, or asks for something that does not exist."""


class CapacityError(PlanError):
    """A capacity cannot be read, or does not fit the model or the machine."""


class PolicyError(TracekitError):
    """An eviction policy or a prefetcher is unknown, mis-parameterised, or breaks its contract."""


class HardwareError(TracekitError):
    """A hardware profile cannot be read, or describes an impossible machine."""


class ShapeError(TracekitError):
    """A model shape cannot be read, or does not match the trace it is used with."""


class ModelError(TracekitError):
    """A model cannot be found, loaded, served, or recorded."""


class StudyError(TracekitError):
    """A study cannot be read, run, or resumed."""


def one_line(message: object) -> str:
    """A message that may quote strangers: a single line, nothing that a terminal obeys, no word without end."""
    words = (word if len(word) <= MOST_QUOTED else _cut(word, MOST_QUOTED) for word in str(message).split())
    return _cut(printable(" ".join(words)), MOST_SAID)


def printable(text: str, also: str = "") -> str:
    """`text` with everything that is no visible character or space spelled out, such as \\x1b; `also` may stay.

    That is what a terminal obeys (control characters), what turns text around (bidi overrides), what is not seen, and
    halves of surrogate pairs, which cannot be written.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in also else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, most: int) -> str:
    """The beginning and the end: either may say what it is about."""
    if len(text) <= most:
        return text
    end = (most - 3) // 3
    return text[: most - 3 - end] + "..." + text[-end:]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The tail of an "unknown word" message: "" or "; did you mean 'lru'?"."""
    spelled = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def shortened(value: object, most: int = 60) -> str:
    """A value as text of bounded length, for a message."""
    text = str(value)
    return text if len(text) <= most else text[: most - 3] + "..."
