"""What the paper published: the numbers of its Tables 1 and 2 and the machines behind them, nothing of ours."""

from dataclasses import dataclass
from typing import Literal

Row = Literal["full", "no-preload", "no-cache", "naive"]
ROWS: tuple[Row, ...] = ("full", "no-preload", "no-cache", "naive")
ROW_TITLES: dict[Row, str] = {
    "full": "full algorithm",
    "no-preload": "without pre-loading",
    "no-cache": "without LRU cache and pre-loading",
    "naive": "naive offloading",
}
Bits = Literal[2, 3]
BITS: tuple[Bits, ...] = (2, 3)

LAYERS = 32
EXPERTS = 8
TOP_K = 2
STAGING = 4
SHAPE = "mixtral-8x7b"

MODEL_PARAMS = 46_702_792_704
"""All parameters of Mixtral-8x7B (the paper rounds to 46.7 billion)."""
EXPERT_PARAMS = LAYERS * EXPERTS * 3 * 4096 * 14336
"""Parameters of all experts (the paper: 45.1 billion)."""
ATTENTION_PARAMS = LAYERS * 2 * (4096 * 4096 + 4096 * 1024)
"""Parameters of all attention projections."""
ATTENTION_FORMAT = "hqq-4bit-g64-m256"
EXPERT_FORMAT: dict[Bits, str] = {2: "hqq-2bit", 3: "hqq-3bit"}
SCALES_QUANTISED = "hqq-3bit-g64-m128"
"""3-bit experts with scales and zeros quantised too, as the text says; Table 1's size speaks against it."""

TABLE1_16BIT = 86.99
"""Published size of the model in 16 bits, in the table's "GB"."""
TABLE1_SIZE: dict[Bits, float] = {2: 17.54, 3: 21.37}
"""Published sizes of Table 2's models, in the same unit: 4-bit attention, 2- or 3-bit experts, the rest in 16 bits."""
SAID_BITS = 2.6
"""Bits per parameter that the text says 2-bit experts take."""

HIT_RATIO: dict[int, float] = {2: 0.375, 4: 0.61}
"""LRU hit ratio by cache size k, the middle of what real Mixtral decode gives (0.35 to 0.40, 0.60 to 0.62)."""
HIT_RANGE: dict[int, tuple[float, float]] = {2: (0.35, 0.40), 4: (0.60, 0.62)}

RECALL: dict[int, float] = {1: 0.45, 2: 0.80}
"""Speculative recall one layer ahead by experts guessed, about what Figure 2 shows; one guess can find at most half."""
RECALL_RANGE: dict[int, tuple[float, float]] = {1: (0.40, 0.48), 2: (0.70, 0.90)}


@dataclass(frozen=True, slots=True)
class Machine:
    """A column of Table 2. `raw_link` is the rate of its PCIe x16 slot after line coding, bytes per second."""

    name: str
    title: str
    cache: int
    pcie: Literal[3, 4]

    @property
    def raw_link(self) -> float:
        return {3: 15.754e9, 4: 31.508e9}[self.pcie]


MACHINES = (
    Machine("a100", "A100", 4, 4),
    Machine("rtx3080m", "3080 Mobile", 4, 4),
    Machine("rtx3060", "3060", 2, 3),
    Machine("t4", "T4", 4, 3),
)

TABLE2: dict[Bits, dict[Row, tuple[float, float, float, float]]] = {
    2: {
        "full": (3.061, 2.655, 2.278, 2.092),
        "no-preload": (2.918, 2.227, 2.051, 1.567),
        "no-cache": (2.265, 1.758, 1.547, 1.168),
        "naive": (1.392, 1.059, 0.919, 0.661),
    },
    3: {
        "full": (2.845, 2.475, 2.038, 1.603),
        "no-preload": (2.683, 2.024, 1.857, 1.365),
        "no-cache": (2.055, 1.595, 1.346, 1.061),
        "naive": (1.246, 0.914, 1.791, 0.580),
    },
}
"""Tokens per second at batch size 1, by bits, row and machine (in the order of `MACHINES`)."""

MISPRINTS: frozenset[tuple[Bits, Row, str]] = frozenset({(3, "naive", "rtx3060")})
"""Cells that cannot be right: loading every expert of every layer would beat loading two of eight."""

FITTED: tuple[tuple[Bits, Row], ...] = ((2, "no-preload"), (2, "no-cache"))
"""The rows that are fitted; all others are predicted."""


def published(bits: Bits, row: Row, machine: str) -> float:
    """Tokens per second of one cell of Table 2."""
    return TABLE2[bits][row][[m.name for m in MACHINES].index(machine)]
