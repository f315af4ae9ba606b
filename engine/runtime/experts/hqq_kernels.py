"""HQQ's codes back into numbers, within Triton kernels: `storage.quantise.dequantise`'s arithmetic, bit for bit."""

import triton.language as tl

from engine.runtime.experts.launching import kernel, part

# ruff: noqa: N803  # constants of a kernel, known when it is compiled, are written in capitals


@part
def widened(x: tl.tensor) -> tl.tensor:
    """float32 of a number of 16 or 32 bits; by its bits, since the interpreter misreads small bfloat16."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@part
def rounded(x: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """float32 to the nearest DTYPE, ties to even; by its bits, since the interpreter cuts bfloat16 off."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        nearest = tl.where(x == x, nearest, 0x7FC0).to(tl.uint16)
        return nearest.to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@part
def codes(words: tl.tensor, nth: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The nth codes of words, as float32; the first one is the highest. 3-bit codes are ten to a word of 32 bits."""
    width: tl.constexpr = 30 if BITS == 3 else 8
    return ((words.to(tl.int32) >> (width - BITS * (nth + 1))) & ((1 << BITS) - 1)).to(tl.float32)


@part
def meta_data(
    stored: tl.tensor, scale: tl.tensor, zero: tl.tensor, group: tl.tensor, live: tl.tensor, META: tl.constexpr
) -> tl.tensor:
    """Scales, or zeros, of groups, as float32: fp16, or (META > 0) codes of 8 bits in META columns, each with its own
    fp16 scale and zero."""
    found = tl.load(stored + group, mask=live, other=0).to(tl.float32)
    if META > 0:
        found = found - tl.load(zero + group % META, mask=live, other=0).to(tl.float32)
        found = found * tl.load(scale + group % META, mask=live, other=0).to(tl.float32)
    return found


@kernel
def expand(
    target: tl.tensor,
    packed: tl.tensor,
    scale: tl.tensor,
    scale_scale: tl.tensor,
    scale_zero: tl.tensor,
    zero: tl.tensor,
    zero_scale: tl.tensor,
    zero_zero: tl.tensor,
    VALUES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    META: tl.constexpr,
    PARTS: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """All VALUES of a matrix, in `target`'s type: each word is read once, and its PARTS codes are written.

    The first codes of all words are the first values, and so on: WORDS groups of words stand one after the other.
    PLACES is the power of two for PARTS; BLOCK, how many words a program reads.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    nth = tl.arange(0, PLACES)[:, None]
    value = nth * (WORDS * GROUP) + place
    live = (place < WORDS * GROUP) & (nth < PARTS) & (value < VALUES)
    words = tl.load(packed + place, mask=place < WORDS * GROUP, other=0)
    group = tl.where(live, nth * WORDS + place // GROUP, 0)
    found = codes(words, tl.minimum(nth, PARTS - 1), BITS)
    found = found - meta_data(zero, zero_scale, zero_zero, group, live, META)
    found = found * meta_data(scale, scale_scale, scale_zero, group, live, META)
    tl.store(target + value, rounded(found, target.dtype.element_ty), mask=live)
