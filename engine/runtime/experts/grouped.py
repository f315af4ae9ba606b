"""Grouped kernels at work on one visit: a pair of launches for several experts, which stand in slots or in a model.

What a call takes part in does not change its bits (`grouped_kernels`): experts of one visit may be computed in any
number of calls, and the sum goes over all of them in ascending order of experts, in float32. So an offloaded model
equals, bit for bit, the same model that is not offloaded and whose experts these kernels compute (`IMPLEMENTATION`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from engine.runtime.experts import launching
from engine.runtime.experts.stacked import Bytes, Product, Shape, first_and_second, loose, shape_of
from engine.runtime.storage.slab_layout import PlainLayout
from engine.runtime.visit_routing import Routing, TokenRouting, read_back, sort_by_expert

IMPLEMENTATION = "tracekit-grouped"
KERNELS = "_tracekit_grouped"  # the attribute of an experts module that is not offloaded: its `Stack`

FEW, MANY = 16, 64  # assignments of one expert that a program computes: in a visit of few tokens, and of more
N, K = 32, 64  # outputs of a program, and inputs that it reads at a time
ADDED = 256  # outputs of a program that only adds

Uses = Callable[[int], Sequence[Tensor]]
"""place of an expert in its stack -> the memory that it is read from"""


@dataclass(frozen=True, slots=True)
class Stack:
    """Stacked experts of a layer: their shape, and the bytes of the matrices and biases of both products."""

    shape: Shape
    matrices: tuple[Bytes, Bytes]
    biases: tuple[Bytes, Bytes]
    uses: Uses


class Call:
    """One visit's experts. Made before the first of them is computed; `groups` are the experts of each call, in order.

    hidden [tokens, hidden], factors [tokens, k]; `places` says where in the stack each expert stands.
    """

    def __init__(
        self,
        stack: Stack,
        groups: Sequence[Sequence[int]],
        places: dict[int, int],
        routing: Routing | TokenRouting,
        hidden: Tensor,
        factors: Tensor,
    ) -> None:
        self.stack, self.groups, self.places = stack, groups, places
        self.hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
        self.factors = factors.reshape(-1)
        self.rows = FEW if len(hidden) <= FEW else MANY
        table, self.tiles_of, self.assignments = _table(groups, places, routing, len(hidden), self.rows)
        self.tiles = sum(self.tiles_of)
        self.begun = 0  # tiles
        device, shape = hidden.device, stack.shape
        # Pinned, so that the host does not wait for the copy; torch keeps it until the copy has landed.
        host = torch.empty(len(table), dtype=torch.int32, pin_memory=device.type == "cuda")
        host.numpy()[:] = table
        self.table = host.to(device, non_blocking=True)
        self.inner = torch.empty(self.assignments, shape.first.outputs, dtype=hidden.dtype, device=device)
        self.parts = torch.empty(self.assignments, shape.second.outputs, dtype=torch.float32, device=device)
        self.out = torch.empty(len(hidden), shape.second.outputs, dtype=hidden.dtype, device=device)

    def compute(self, group: int) -> None:
        """Compute the group's experts, which are all there; groups in order."""
        from engine.runtime.experts import grouped_kernels as kernels

        tiles, begun = self.tiles_of[group], self.begun
        self.begun += tiles
        if tiles:
            shape, blocks = self.stack.shape, -(-self.stack.shape.first.outputs // N)
            arguments: dict[str, launching.Argument] = {
                "inner": self.inner,
                "hidden": self.hidden,
                "row_stride": self.hidden.stride(0),
                "GATE": shape.first.matrices[0],
                "UP": shape.first.matrices[1],
                "ACTIVATION": shape.activation,
                "INNER": shape.first.outputs,
                **self._common(0, begun),
            }
            touched = self._touched(group, (self.hidden, self.table), self.inner)
            launching.launch(kernels.first, (tiles, blocks), arguments, touched)
        last = group == len(self.groups) - 1
        arguments = {
            "parts": self.parts,
            "inner": self.inner,
            "factors": self.factors,
            "DOWN": self.stack.shape.second.matrices[0],
            "HIDDEN": self.stack.shape.second.outputs,
            **self._common(1, begun),
        }
        reads = (self.inner, self.factors, self.table)
        blocks = -(-self.stack.shape.second.outputs // N)
        if len(self.hidden) == 1 and last:
            arguments |= {"out": self.out, "assignments": self.assignments}
            touched = self._touched(group, (*reads, self.parts), self.out)
            launching.launch(kernels.second_of_token, (blocks,), arguments, touched)
            return
        if tiles:
            launching.launch(kernels.second, (tiles, blocks), arguments, self._touched(group, reads, self.parts))
        if last:
            self._add()

    def _add(self) -> None:
        from engine.runtime.experts import grouped_kernels as kernels

        hidden = self.stack.shape.second.outputs
        arguments: dict[str, launching.Argument] = {
            "out": self.out,
            "parts": self.parts,
            "table": self.table,
            "tiles": self.tiles,
            "assignments": self.assignments,
            "HIDDEN": hidden,
            "N": ADDED,
        }
        grid = (len(self.hidden), -(-hidden // ADDED))
        launching.launch(kernels.added, grid, arguments, lambda: ((self.parts, self.table), (self.out,)))

    def _common(self, number: int, begun: int) -> dict[str, launching.Argument]:
        """What the kernels of both products ask for."""
        product: Product = (self.stack.shape.first, self.stack.shape.second)[number]
        matrices, biases = self.stack.matrices[number], self.stack.biases[number]
        return {
            "table": self.table,
            "first_tile": begun,
            "tiles": self.tiles,
            "matrices": matrices.all,
            "matrices_stride": matrices.stride,
            "biases": biases.all,
            "biases_stride": biases.stride,
            "BIAS": product.bias,
            "BIAS_DTYPE": launching.triton_type(product.bias_dtype),
            "SPREAD": product.spread,
            "WIDE": launching.interpreted(),
            "M": self.rows,
            "N": N,
            "K": K,
        }

    def _touched(self, group: int, reads: Sequence[Tensor], written: Tensor) -> launching.Touched:
        def asked() -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            slabs = [tensor for expert in self.groups[group] for tensor in self.stack.uses(self.places[expert])]
            return (*reads, *slabs), (written,)

        return asked


def _table(
    groups: Sequence[Sequence[int]],
    places: dict[int, int],
    routing: Routing | TokenRouting,
    tokens: int,
    rows: int,
) -> tuple[np.ndarray, list[int], int]:
    """The table that kernels read (`grouped_kernels`), i32; the tiles of each group; and how many assignments."""
    if isinstance(routing, TokenRouting):
        ascending = sorted(routing.place)
        token, choice = np.zeros(len(ascending), np.int64), np.array([routing.place[e] for e in ascending], np.int64)
        span = {expert: slice(i, i + 1) for i, expert in enumerate(ascending)}
    else:
        token, choice, span = routing.token.numpy(), routing.choice.numpy(), routing.span
    tiles: list[tuple[int, int, int, int]] = []
    tiles_of: list[int] = []
    tile_of = np.zeros(len(token), np.int64)
    for group in groups:
        before = len(tiles)
        for expert in sorted(group):
            for start in range(span[expert].start, span[expert].stop, rows):
                stop = min(start + rows, span[expert].stop)
                tile_of[start:stop] = len(tiles)
                tiles.append((places[expert], start, stop - start, 0))
        tiles_of.append(len(tiles) - before)
    assigned = np.stack([token, choice, tile_of, np.zeros_like(token)], axis=1)
    # Stable: of one token in ascending order of experts, as assignments are.
    by_token = np.argsort(token, kind="stable")
    begins = np.searchsorted(token[by_token], np.arange(tokens + 1))
    whole = [np.array(tiles, np.int64).ravel(), assigned.ravel(), by_token, begins]
    return np.concatenate(whole).astype(np.int32), tiles_of, len(token)


def register() -> None:
    """Make the kernels known to transformers as an implementation of experts that are not offloaded."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, grouped_experts)


def grouped_experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The function that transformers calls: the kernels over the stacked experts of a module, all of them there."""
    stack: Stack | None = getattr(module, KERNELS, None)
    if stack is None:
        stack = _stack_of(module)
        setattr(module, KERNELS, stack)
    count = cast(int, module.num_experts)
    routing = sort_by_expert(read_back(top_k_index, None, None)[0], count, torch.device("cpu"))
    places = {expert: expert for expert in routing.demand}
    call = Call(stack, [routing.demand], places, routing, hidden_states, top_k_weights)
    call.compute(0)
    return call.out


def _stack_of(module: nn.Module) -> Stack:
    shape = shape_of(module, PlainLayout.of(module), apart=True)
    names = first_and_second(shape.activation)
    matrices, biases = ([loose(module, f"{name}{end}") for name in names] for end in ("", "_bias"))

    def uses(expert: int) -> Sequence[Tensor]:
        return [one.all[expert * one.stride : (expert + 1) * one.stride] for one in (*matrices, *biases)]

    return Stack(shape, (matrices[0], matrices[1]), (biases[0], biases[1]), uses)
