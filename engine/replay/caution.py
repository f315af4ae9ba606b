"""A caution: what to know before believing a result, with a code by which programs tell one from another."""

from typing import Literal

import msgspec

Code = Literal[
    "batched",
    "incomplete trace",
    "synthetic trace",
    "no decode steps",
    "few decode tokens",
    "independent routing",
    "costs",
    "below the token cycle",
    "link busy",
    "does not fit",
    "holds no expert",
]


class Caution(msgspec.Struct, frozen=True):
    """`text` is one line for people: results print it as a warning."""

    code: Code
    text: str
