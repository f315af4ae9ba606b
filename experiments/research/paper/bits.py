"""How many bits a parameter of an expert takes: the paper allows more than one answer, and the fit depends on it."""

from dataclasses import dataclass

from engine.plan.weights import WeightFormat
from experiments.research.paper.published import (
    ATTENTION_FORMAT,
    ATTENTION_PARAMS,
    EXPERT_FORMAT,
    EXPERT_PARAMS,
    EXPERTS,
    LAYERS,
    MODEL_PARAMS,
    SAID_BITS,
    SCALES_QUANTISED,
    TABLE1_16BIT,
    TABLE1_SIZE,
    Bits,
)

GIB = 2**30
GB = 10**9


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer: bits per parameter, scales and zeros included, by nominal bits."""

    title: str
    bits: dict[Bits, float]

    def expert_bytes(self, bits: Bits) -> float:
        """Bytes of one expert."""
        return self.bits[bits] * EXPERT_PARAMS / (LAYERS * EXPERTS) / 8


def readings() -> tuple[Reading, ...]:
    """Every reading, the one that is used first."""
    formats: dict[Bits, float] = {b: WeightFormat.parse(word).bits_per_parameter for b, word in EXPERT_FORMAT.items()}
    said: dict[Bits, float] = {2: SAID_BITS, 3: SAID_BITS + table1_bits(3, GIB) - table1_bits(2, GIB)}
    quantised: dict[Bits, float] = {**formats, 3: WeightFormat.parse(SCALES_QUANTISED).bits_per_parameter}
    return (
        Reading("HQQ's layout, byte for byte (used)", formats),
        Reading("the same, 3-bit scales quantised too", quantised),
        Reading("Table 1's sizes in 2^30 bytes", {b: table1_bits(b, GIB) for b in formats}),
        Reading("Table 1's sizes in 10^9 bytes", {b: table1_bits(b, GB) for b in formats}),
        Reading("the text's figure; 3-bit as much more as in Table 1", said),
    )


def table1_bits(bits: Bits, unit: int) -> float:
    """Bits per expert parameter that Table 1's size leaves, if its "GB" is `unit` bytes."""
    attention = ATTENTION_PARAMS * WeightFormat.parse(ATTENTION_FORMAT).bits_per_parameter / 8
    rest = 2 * (MODEL_PARAMS - EXPERT_PARAMS - ATTENTION_PARAMS)
    return (TABLE1_SIZE[bits] * unit - attention - rest) * 8 / EXPERT_PARAMS


def table1_unit_params(unit: int) -> float:
    """Parameters that the size of the 16-bit model in Table 1 makes, if its "GB" is `unit` bytes: tells the unit."""
    return TABLE1_16BIT * unit / 2
