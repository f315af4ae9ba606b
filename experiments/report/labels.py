"""Names of plans beside each other: what tells them apart is in each name, what they share is said once."""

from collections.abc import Mapping, Sequence

Parts = Mapping[str, str]
"""What a plan consists of, in the order of reading; "" where it has no such part. The first is always named."""
PREFETCH = "prefetch"
"""The part that is added with a plus; all others follow a comma."""


def labels(plans: Sequence[Parts]) -> list[str]:
    """A name for each plan, all different; of a plan that stands alone, all of it."""
    told: list[str] = []
    varied = _varied(plans)
    for plan in plans:
        name, count = _joined([(part, plan.get(part, "")) for part in varied]), 1
        unique = name
        while unique in told:
            count += 1
            unique = f"{name} ({count})"
        told.append(unique)
    return told


def shared(plans: Sequence[Parts]) -> str:
    """What all plans have in common, beside the first part."""
    varied = _varied(plans)
    return _joined([(part, value) for part, value in plans[0].items() if part not in varied]) if plans else ""


def wrapped(label: str, most: int) -> list[str]:
    """The label in lines of at most so many characters, broken at blanks; a longer word is broken itself."""
    lines = [""]
    for word in label.split(" "):
        while len(word) > most:
            lines += [word[:most]]
            word = word[most:]
        if len(lines[-1]) + 1 + len(word) > most:
            lines.append(word)
        else:
            lines[-1] += (" " if lines[-1] else "") + word
    return [line for line in lines if line] or [""]


def _varied(plans: Sequence[Parts]) -> list[str]:
    parts = list(dict.fromkeys(part for plan in plans for part in plan))
    if len(plans) == 1:
        return parts
    return [part for part in parts if part == parts[0] or len({plan.get(part, "") for plan in plans}) > 1]


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    text = ""
    for part, value in parts:
        if value:
            text += (" + " if part == PREFETCH and text else ", " if text else "") + value
    return text
