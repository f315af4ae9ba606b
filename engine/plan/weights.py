"""Weight formats, and the exact bytes a matrix takes in each.

A format is a word: `fp32`, `bf16`, `fp16`, or `hqq-<bits>bit[-g<group>[-m<meta group>]]`. The HQQ formats are
those of the `hqq` package (Badri & Shaji 2023), laid out as its `Quantizer.quantize(..., axis=1)` does it:

- the matrix is flattened into groups of `group` consecutive values, one scale and one zero (fp16) per group;
- the codes are packed over the group axis: 8-bit one per byte, 4-bit two per byte, 2-bit four per byte, 3-bit
  ten per 32-bit word (the number of groups padded up to a multiple of ten);
- with `-m<meta group>` the scales, and likewise the zeros, are themselves stored in 8 bits in groups of
  `meta group`, each such group with its own fp16 scale and zero.

A word without groups takes those of Eliseev & Mazur 2023 (arXiv 2312.17238, section 4.1): `hqq-4bit` (their
attention) is `hqq-4bit-g64`, `hqq-3bit` is `hqq-3bit-g64`, and `hqq-2bit` is `hqq-2bit-g16-m128`: in groups
of 16, fp16 scales and zeros would take as much as the codes. `hqq-8bit` is `hqq-8bit-g64`. A word that spells
its group has quantised meta-data only if it says so: `hqq-2bit-g16` keeps fp16 scales and zeros.

The words of `engine.plan.foreign_formats` (`q4_k`, `mxfp4`, `awq-4bit`, `fp8`, ...) are for replays and sizing only.
"""

import re
from collections.abc import Iterable
from typing import Protocol

import msgspec

from engine.plan import foreign_formats
from engine.plan.stored_tensor import ITEM_BYTES, StoredTensor
from tracekit.errors import PlanError, did_you_mean

_PLAIN = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}
_HQQ_DEFAULTS = {8: (64, 0), 4: (64, 0), 3: (64, 0), 2: (16, 128)}  # bits -> (group, meta group)
_HQQ = re.compile(r"hqq-(\d{1,2})bit(?:-g(\d{1,6})(?:-m(\d{1,6}))?)?")
_CODES_PER_WORD_3BIT = 10

SERVED = (
    "fp32", "bf16", "fp16",
    "hqq-8bit", "hqq-8bit-g64",
    "hqq-4bit", "hqq-4bit-g64",
    "hqq-3bit", "hqq-3bit-g64",
    "hqq-2bit", "hqq-2bit-g16", "hqq-2bit-g16-m128",
)  # fmt: skip
"""The words of formats that the engine stores; HQQ takes other groups as well."""
KV_FORMATS = ("fp32", "fp16", "bf16", "fp8", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")
"""What engines keep keys and values in: vLLM 16 bits or fp8, llama.cpp (--cache-type-k) the others, too."""
FORMATS = (*SERVED, *foreign_formats.WORDS)
"""The words a user is told about."""


class ExpertShape(Protocol):
    """What `expert_bytes` must know of an expert: its matrices (rows, columns), its biases' lengths."""

    def expert_tensors(self) -> tuple[tuple[int, int], ...]: ...

    def expert_biases(self) -> tuple[int, ...]: ...


class WeightFormat(msgspec.Struct, frozen=True):
    """How a matrix is stored. Build one with `WeightFormat.parse`; two that store alike are equal."""

    name: str
    """The canonical word, groups spelled out."""
    bits: int
    """Bits of one code: 32, 16, 8, 4, 3 or 2."""
    group: int = 0
    """Consecutive values that share a scale and a zero; 0 for the unquantised formats."""
    meta_group: int = 0
    """Scales (and zeros) that share a scale and a zero of their own; 0 leaves them in fp16."""
    foreign: bool = False
    """Whether it is other software's, which the engine does not store."""

    @classmethod
    def parse(cls, text: str) -> "WeightFormat":
        """The format a word names. PlanError for an unknown word or an impossible group."""
        if not isinstance(text, str):
            raise PlanError(f"a weight format is a word such as 'bf16' or 'hqq-4bit', not {text!r}")
        if text in _PLAIN:
            return cls(text, 8 * _PLAIN[text][1])
        if foreign := foreign_formats.canonical(text):
            return cls(foreign, foreign_formats.bits(foreign), foreign=True)
        match = _HQQ.fullmatch(text)
        if match is None or int(match[1]) not in _HQQ_DEFAULTS:
            guess = did_you_mean(text[:64], FORMATS)
            raise PlanError(f"unknown weight format {text[:64]!r}{guess or '; known: ' + ', '.join(FORMATS)}")
        bits = int(match[1])
        group, meta_group = _HQQ_DEFAULTS[bits]
        if match[2] is not None:
            group, meta_group = int(match[2]), 0
        if match[3] is not None:
            meta_group = int(match[3])
        if group == 0 or group % 8 or (match[3] is not None and (meta_group == 0 or meta_group % 8)):
            raise PlanError(f"weight format {text!r}: a group size is a positive multiple of 8, such as 16, 64 or 128")
        name = f"hqq-{bits}bit-g{group}" + (f"-m{meta_group}" if meta_group else "")
        return cls(name, bits, group, meta_group)

    def __str__(self) -> str:
        return self.name

    @property
    def quantised(self) -> bool:
        """Whether matrices are stored as codes with scales and zeros."""
        return self.group > 0 or self.foreign

    def served(self) -> "WeightFormat":
        """This format, if the engine stores it; else PlanError."""
        if self.foreign:
            raise PlanError(
                f"weight format {self.name!r} is for replays and sizing: the engine stores bf16, fp16, fp32 or hqq-*, "
                f"such as hqq-{4 if self.bits >= 4 else 2}bit"
            )
        return self

    @property
    def plain_dtype(self) -> str:
        """torch's word for the type of what is never quantised (biases) beside matrices of this format."""
        return "float16" if self.quantised else _PLAIN[self.name][0]

    @property
    def plain_bytes(self) -> int:
        """Bytes of one value of `plain_dtype`."""
        return ITEM_BYTES[self.plain_dtype]

    @property
    def bits_per_parameter(self) -> float:
        """Bits a parameter of a large matrix takes, scales and zeros included."""
        if self.foreign:
            side = 1 << 14  # a multiple of every block and group
            return 8 * self.tensor_bytes(side, side) / side**2
        if not self.quantised:
            return float(self.bits)
        code = 32 / _CODES_PER_WORD_3BIT if self.bits == 3 else float(self.bits)
        meta = 8 + 32 / self.meta_group if self.meta_group else 16.0
        return code + 2 * meta / self.group

    def tensors(self, rows: int, cols: int) -> tuple[StoredTensor, ...]:
        """The arrays that store a [rows, cols] matrix, in the order they are stored.

        PlanError when the matrix cannot be cut into this format's groups.
        """
        if rows < 1 or cols < 1:
            raise PlanError(f"a matrix of {rows} x {cols} has nothing to store; both sides must be at least 1")
        if not self.quantised:
            return (StoredTensor("weight", self.plain_dtype, (rows, cols)),)
        if self.foreign:
            try:
                return foreign_formats.arrays(self.name, rows, cols)
            except ValueError as misfit:
                raise self._unfit(rows, cols, str(misfit)) from None
        groups, rest = divmod(rows * cols, self.group)
        if rest:
            raise self._unfit(rows, cols, f"its {rows * cols} values are no multiple of the group size {self.group}")
        codes = self._codes(rows, cols, groups)
        if not self.meta_group:
            return (codes, *(StoredTensor(name, "float16", (groups, 1)) for name in ("scale", "zero")))
        meta_groups, rest = divmod(groups, self.meta_group)
        if rest:
            raise self._unfit(
                rows, cols, f"its {groups} scales are no multiple of the meta group size {self.meta_group}"
            )
        stored = [codes]
        for name in ("scale", "zero"):
            stored.append(StoredTensor(name, "uint8", (self.meta_group, meta_groups)))
            stored.append(StoredTensor(f"{name}.scale", "float16", (1, meta_groups)))
            stored.append(StoredTensor(f"{name}.zero", "float16", (1, meta_groups)))
        return tuple(stored)

    def _codes(self, rows: int, cols: int, groups: int) -> StoredTensor:
        if self.bits == 3:
            words = -(-groups // _CODES_PER_WORD_3BIT)
            return StoredTensor("codes", "int32", (words, self.group))
        per_byte = 8 // self.bits
        if groups % per_byte:
            raise self._unfit(rows, cols, f"its {groups} groups do not pack {per_byte} to a byte")
        return StoredTensor("codes", "uint8", (groups // per_byte, self.group))

    def _unfit(self, rows: int, cols: int, why: str) -> PlanError:
        return PlanError(
            f"a {rows} x {cols} matrix cannot be stored as {self.name}: {why}; choose another group or bf16"
        )

    def tensor_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a stored [rows, cols] matrix: the sum over `tensors`, without alignment between them."""
        return sum(tensor.bytes for tensor in self.tensors(rows, cols))

    def matrices_bytes(self, matrices: Iterable[tuple[int, int]], biases: Iterable[int] = ()) -> int:
        """Bytes of several matrices and of biases, which are never quantised."""
        return sum(self.tensor_bytes(*matrix) for matrix in matrices) + sum(biases) * self.plain_bytes

    def values_bytes(self, count: int) -> int:
        """Bytes of a row of `count` of a token's keys and values, the last block filled up.

        PlanError for a format that no engine keeps them in.
        """
        if self.foreign and self.name not in KV_FORMATS:
            raise PlanError(f"a key-value cache is not stored as {self.name}: use {', '.join(KV_FORMATS)}")
        if self.name in foreign_formats.BLOCKS:
            values, size = foreign_formats.BLOCKS[self.name]
            return -(-count // values) * size
        if self.name == "fp8":
            return count
        if self.quantised:
            raise PlanError(f"a key-value cache is not stored as {self.name}: use {', '.join(KV_FORMATS)}")
        return count * self.plain_bytes

    def expert_bytes(self, shape: ExpertShape) -> int:
        """Bytes of one expert of `shape` (a ModelShape, or anything that lists matrices and biases)."""
        return self.matrices_bytes(shape.expert_tensors(), shape.expert_biases())


def expanded_bits(word: str | None, *, grouped: bool) -> tuple[int | None, bool]:
    """Bits of a code that a kernel of its own expands before an expert is computed, and whether its scales are codes.

    None where nothing is expanded apart: plain weights, other software's formats, and `grouped` kernels, which expand
    as they read. Raises PlanError.
    """
    if word is None:
        return None, False
    parsed = WeightFormat.parse(word)
    return (parsed.bits if parsed.group > 0 and not grouped else None), parsed.meta_group > 0
