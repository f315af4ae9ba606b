"""Triton kernels that compute several experts at once, each where it lies among stacked experts.

An expert is some bytes at a stride; its matrices are tuples of integers that say where in these bytes they stand
(`stacked.Stored`), so that slots of a pool and the stacked parameters of a model are the same to a kernel. Which rows
belong to which expert says a table, made on the host:

    tiles        4 integers each: the expert's place in the stack, its first assignment, how many follow, unused
    assignments  4 each, experts ascending: token, choice (of all tokens' choices), tile, unused
    by token     the assignments of token 0 in ascending order, of token 1, ...; then where each token's begin, and end

Products add up in float32, inputs cut the same way for every expert; nothing is added by atomics, split over programs,
or tuned: the same rows give the same bits, whichever call an expert is computed in.
"""

import triton.language as tl

from engine.runtime.experts.hqq_kernels import codes, meta_data, rounded, widened
from engine.runtime.experts.launching import kernel, part

# ruff: noqa: N803  # constants of a kernel, known when it is compiled, are written in capitals

# The fields of `stacked.Stored`.
BITS, AT, ROW, COL, COLS, GROUP, WORDS, META = (tl.constexpr(number) for number in range(8))
SCALE, SCALE_SCALE, SCALE_ZERO, ZERO, ZERO_SCALE, ZERO_ZERO = (tl.constexpr(number) for number in range(8, 14))
# The fields of `activation.Activation`.
KIND, GATED, INTERLEAVED, ALPHA, LIMIT, PLUS = (tl.constexpr(number) for number in range(6))
# Its kinds.
SILU, GELU, GELU_TANH, RELU = (tl.constexpr(number) for number in range(4))


@part
def typed(base: tl.tensor, at: int, DTYPE: tl.constexpr) -> tl.tensor:
    """A pointer to numbers that begin `at` bytes behind a pointer to bytes."""
    return (base + at).to(tl.pointer_type(DTYPE))


@part
def scales(base: tl.tensor, group: tl.tensor, live: tl.tensor, M: tl.constexpr, FIRST: tl.constexpr) -> tl.tensor:
    """Scales (FIRST is SCALE) or zeros (ZERO) of groups of a matrix, as float32."""
    scale, zero = typed(base, M[FIRST + 1], tl.float16), typed(base, M[FIRST + 2], tl.float16)
    if M[META] == 0:
        return meta_data(typed(base, M[FIRST], tl.float16), scale, zero, group, live, 0)
    return meta_data(base + M[FIRST], scale, zero, group, live, M[META])


@part
def weights(
    base: tl.tensor,
    row: tl.tensor,
    start: int,
    live: tl.tensor,
    M: tl.constexpr,
    DTYPE: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> tl.tensor:
    """Rows [N] of a matrix from column `start` on, [N, K] in DTYPE; 0 where not live."""
    col = start + tl.arange(0, K)[None, :]
    inside = live[:, None] & (col < M[COLS])
    if M[BITS] == 0:
        return tl.load(typed(base, M[AT], DTYPE) + row[:, None] * M[ROW] + col * M[COL], mask=inside, other=0.0)
    if M[COLS] % K == 0 and M[WORDS] * M[GROUP] % K == 0 and (K % M[GROUP] == 0 or M[GROUP] % K == 0):
        # A row's K values stand side by side, in the same part of their words: read as one, a scale for each group.
        value = tl.where(live, row * M[COLS] + start, 0)
        place = tl.multiple_of(value % (M[WORDS] * M[GROUP]), K)[:, None] + tl.arange(0, K)[None, :]
        nth = (value // (M[WORDS] * M[GROUP]))[:, None]
        several: tl.constexpr = max(K // M[GROUP], 1)
        group = (value // M[GROUP])[:, None] + tl.arange(0, several)[None, :]
        there = tl.broadcast_to(live[:, None], (N, several))
        zero = spread(scales(base, group, there, M, ZERO), N, several, K)
        scale = spread(scales(base, group, there, M, SCALE), N, several, K)
    else:
        value = tl.where(inside, row[:, None] * M[COLS] + col, 0)
        place, nth = value % (M[WORDS] * M[GROUP]), value // (M[WORDS] * M[GROUP])
        zero = scales(base, value // M[GROUP], inside, M, ZERO)
        scale = scales(base, value // M[GROUP], inside, M, SCALE)
    packed = typed(base, M[AT], tl.int32 if M[BITS] == 3 else tl.uint8)
    found = codes(tl.load(packed + place, mask=inside, other=0), nth, M[BITS])
    return rounded(tl.where(inside, (found - zero) * scale, 0.0), DTYPE)


@part
def spread(x: tl.tensor, N: tl.constexpr, SEVERAL: tl.constexpr, K: tl.constexpr) -> tl.tensor:
    """[N, SEVERAL] to [N, K], each number repeated."""
    return tl.reshape(tl.broadcast_to(x[:, :, None], (N, SEVERAL, K // SEVERAL)), (N, K))


@part
def product(x: tl.tensor, w: tl.tensor, total: tl.tensor, WIDE: tl.constexpr) -> tl.tensor:
    """total [M, N] + x [M, K] times w [N, K], in float32. WIDE: for the interpreter, which cannot multiply bfloat16."""
    if WIDE:
        return tl.dot(widened(x), tl.trans(widened(w)), total, input_precision="ieee")
    return tl.dot(x, tl.trans(w), total, input_precision="ieee")


@part
def outputs_of(block: int, OUTPUTS: tl.constexpr, N: tl.constexpr, SPREAD: tl.constexpr) -> tl.tensor:
    """The outputs [N] that a program computes: SPREAD runs, so that codes which share words are read together."""
    lane = tl.arange(0, N)
    return lane // (N // SPREAD) * (OUTPUTS // SPREAD) + block * (N // SPREAD) + lane % (N // SPREAD)


@part
def are_outputs(block: int, OUTPUTS: tl.constexpr, N: tl.constexpr, SPREAD: tl.constexpr) -> tl.tensor:
    """Which of them there are, bool [N]."""
    return block * (N // SPREAD) + tl.arange(0, N) % (N // SPREAD) < OUTPUTS // SPREAD


@part
def activated(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """`activation.Activation`'s function of one number, in float32."""
    if ACTIVATION[KIND] == SILU:
        return x * tl.sigmoid(ACTIVATION[ALPHA] * x)
    if ACTIVATION[KIND] == GELU:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACTIVATION[KIND] == GELU_TANH:
        # tanh(y) = 2 sigmoid(2 y) - 1
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION[KIND] == RELU:
        return positive
    return positive * positive


@part
def biased(
    total: tl.tensor,
    base: tl.tensor,
    output: tl.tensor,
    live: tl.tensor,
    AT: tl.constexpr,
    STORED: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """total [M, N] + a bias, stored as STORED and taken as DTYPE; AT < 0: there is none."""
    if AT < 0:
        return total
    bias = widened(tl.load(typed(base, AT, STORED) + output, mask=live, other=0.0))
    return total + widened(rounded(bias, DTYPE))[None, :]


@kernel
def first(
    inner: tl.tensor,
    hidden: tl.tensor,
    row_stride: int,
    table: tl.tensor,
    first_tile: int,
    tiles: int,
    matrices: tl.tensor,
    matrices_stride: int,
    biases: tl.tensor,
    biases_stride: int,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_DTYPE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INNER: tl.constexpr,
    SPREAD: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Gate and up of the assignments of one tile, and the activation between them: inner [assignments, INNER].

    Programs: tiles from `first_tile` on, blocks of outputs. GATE and UP are matrices, of which rows are taken as the
    activation says; without a gate UP alone is read.
    """
    tile = table + 4 * (first_tile + tl.program_id(0))
    expert, begin, count = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    block = tl.program_id(1)
    line = tl.arange(0, M)
    mine = line < count
    token = tl.load(table + 4 * tiles + 4 * (begin + line), mask=mine, other=0).to(tl.int64)
    output, live = outputs_of(block, INNER, N, SPREAD), are_outputs(block, INNER, N, SPREAD)
    gate_row = output * (1 + ACTIVATION[INTERLEAVED])
    up_row = gate_row + ACTIVATION[INTERLEAVED]
    dtype: tl.constexpr = inner.dtype.element_ty
    bytes_of = matrices + expert * matrices_stride
    gate, up = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
    for start in range(0, UP[COLS], K):
        col = start + tl.arange(0, K)
        x_live = mine[:, None] & (col < UP[COLS])[None, :]
        x = tl.load(hidden + token[:, None] * row_stride + col[None, :], mask=x_live, other=0.0)
        if ACTIVATION[GATED]:
            gate = product(x, weights(bytes_of, gate_row, start, live, GATE, dtype, N, K), gate, WIDE)
        up = product(x, weights(bytes_of, up_row, start, live, UP, dtype, N, K), up, WIDE)
    bias_of = biases + expert * biases_stride
    if ACTIVATION[GATED]:
        at: tl.constexpr = 0 if ACTIVATION[INTERLEAVED] else INNER
        gate = biased(gate, bias_of, gate_row, live, BIAS, BIAS_DTYPE, dtype)
        up = biased(up, bias_of, up_row + at, live, BIAS, BIAS_DTYPE, dtype)
        gate = tl.minimum(gate, ACTIVATION[LIMIT], propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, ACTIVATION[LIMIT], propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -ACTIVATION[LIMIT], propagate_nan=tl.PropagateNan.ALL)
        found = activated(gate, ACTIVATION) * (up + ACTIVATION[PLUS])
    else:
        found = activated(biased(up, bias_of, up_row, live, BIAS, BIAS_DTYPE, dtype), ACTIVATION)
    place = (begin + line).to(tl.int64)[:, None] * INNER + output[None, :]
    tl.store(inner + place, rounded(found, dtype), mask=mine[:, None] & live[None, :])


@part
def down(
    inner: tl.tensor,
    begin: int,
    count: int,
    expert: tl.tensor,
    matrices: tl.tensor,
    matrices_stride: int,
    biases: tl.tensor,
    biases_stride: int,
    output: tl.tensor,
    live: tl.tensor,
    DOWN: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> tl.tensor:
    """The second product of a tile's assignments, bias included: float32 [M, N]."""
    line = tl.arange(0, M)
    dtype: tl.constexpr = inner.dtype.element_ty
    row = (begin + line).to(tl.int64)[:, None] * DOWN[COLS]
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, DOWN[COLS], K):
        col = start + tl.arange(0, K)[None, :]
        x = tl.load(inner + row + col, mask=(line < count)[:, None] & (col < DOWN[COLS]), other=0.0)
        w = weights(matrices + expert * matrices_stride, output, start, live, DOWN, dtype, N, K)
        total = product(x, w, total, WIDE)
    return biased(total, biases + expert * biases_stride, output, live, BIAS, BIAS_DTYPE, dtype)


@kernel
def second(
    parts: tl.tensor,
    inner: tl.tensor,
    factors: tl.tensor,
    table: tl.tensor,
    first_tile: int,
    tiles: int,
    matrices: tl.tensor,
    matrices_stride: int,
    biases: tl.tensor,
    biases_stride: int,
    DOWN: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    SPREAD: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """What each assignment of one tile adds to its token: parts float32 [assignments, HIDDEN]."""
    tile = table + 4 * (first_tile + tl.program_id(0))
    expert, begin, count = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    block = tl.program_id(1)
    output, live = outputs_of(block, HIDDEN, N, SPREAD), are_outputs(block, HIDDEN, N, SPREAD)
    found = down(
        inner, begin, count, expert, matrices, matrices_stride, biases, biases_stride, output, live,
        DOWN, BIAS, BIAS_DTYPE, WIDE, M, N, K,
    )  # fmt: skip
    line = tl.arange(0, M)
    mine = line < count
    choice = tl.load(table + 4 * tiles + 4 * (begin + line) + 1, mask=mine, other=0)
    factor = widened(tl.load(factors + choice, mask=mine, other=0.0))
    place = (begin + line).to(tl.int64)[:, None] * HIDDEN + output[None, :]
    tl.store(parts + place, found * factor[:, None], mask=mine[:, None] & live[None, :])


@kernel
def second_of_token(
    out: tl.tensor,
    parts: tl.tensor,
    inner: tl.tensor,
    factors: tl.tensor,
    table: tl.tensor,
    first_tile: int,
    tiles: int,
    assignments: int,
    matrices: tl.tensor,
    matrices_stride: int,
    biases: tl.tensor,
    biases_stride: int,
    DOWN: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    SPREAD: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """All that is added to the only token, experts ascending: out [1, HIDDEN].

    Experts of tiles from `first_tile` on are computed here, the others' parts are there already.
    """
    block = tl.program_id(0)
    output, live = outputs_of(block, HIDDEN, N, SPREAD), are_outputs(block, HIDDEN, N, SPREAD)
    line = tl.arange(0, M)
    total = tl.zeros((N,), tl.float32)
    for assignment in range(assignments):
        tile = tl.load(table + 4 * tiles + 4 * assignment + 2)
        if tile < first_tile:
            added = tl.load(parts + assignment * HIDDEN + output, mask=live, other=0.0)
        else:
            expert = tl.load(table + 4 * tile).to(tl.int64)
            found = down(
                inner, assignment, 1, expert, matrices, matrices_stride, biases, biases_stride, output, live,
                DOWN, BIAS, BIAS_DTYPE, WIDE, M, N, K,
            )  # fmt: skip
            factor = widened(tl.load(factors + tl.load(table + 4 * tiles + 4 * assignment + 1)))
            added = tl.sum(tl.where(line[:, None] == 0, found * factor, 0.0), axis=0)
        total += added
    tl.store(out + output, rounded(total, out.dtype.element_ty), mask=live)


@kernel
def added(
    out: tl.tensor,
    parts: tl.tensor,
    table: tl.tensor,
    tiles: int,
    assignments: int,
    HIDDEN: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """What is added to each token, experts ascending: out [tokens, HIDDEN]. Programs: tokens, blocks of outputs."""
    token = tl.program_id(0)
    by_token = table + 4 * tiles + 4 * assignments
    begin, end = tl.load(by_token + assignments + token), tl.load(by_token + assignments + token + 1)
    output = tl.program_id(1) * N + tl.arange(0, N)
    live = output < HIDDEN
    total = tl.zeros((N,), tl.float32)
    for place in range(begin, end):
        assignment = tl.load(by_token + place).to(tl.int64)
        total += tl.load(parts + assignment * HIDDEN + output, mask=live, other=0.0)
    tl.store(out + token.to(tl.int64) * HIDDEN + output, rounded(total, out.dtype.element_ty), mask=live)
