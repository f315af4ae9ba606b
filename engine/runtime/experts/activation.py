"""What stands between an expert's two products, found by trying what kernels know on a few numbers.

transformers writes it as code of each family (`_apply_gate`, `act_fn`). A few shapes of it cover all families but some;
which one a module has is not taken from names but tried.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracekit.errors import PlanError
from tracekit.recorder.seam import has_gate, is_concatenated

SILU, GELU, GELU_TANH, RELU, SQUARED_RELU = range(5)
KINDS = (SILU, GELU, GELU_TANH, RELU, SQUARED_RELU)
UNLIMITED = float("inf")


class Activation(NamedTuple):
    """act(min(gate, limit)) * (up clamped to +-limit, plus `plus`); without a gate act(up). act: one of KINDS.

    SILU is x * sigmoid(alpha * x). `interleaved`: gate and up are the even and the odd outputs of one product; else
    its first and second half.
    """

    kind: int
    gated: bool
    interleaved: bool = False
    alpha: float = 1.0
    limit: float = UNLIMITED
    plus: float = 0.0

    def apply(self, outputs: Tensor) -> Tensor:
        """Of the first product's outputs [n, intermediate, twice as many with a gate]."""
        if not self.gated:
            return self._act(outputs)
        halves = (outputs[..., ::2], outputs[..., 1::2]) if self.interleaved else outputs.chunk(2, dim=-1)
        gate, up = halves[0].clamp(max=self.limit), halves[1].clamp(-self.limit, self.limit)
        return self._act(gate) * (up + self.plus)

    def _act(self, x: Tensor) -> Tensor:
        if self.kind == SILU:
            return x * torch.sigmoid(self.alpha * x)
        if self.kind in (GELU, GELU_TANH):
            return nn.functional.gelu(x, approximate="none" if self.kind == GELU else "tanh")
        positive = x.clamp(min=0)
        return positive if self.kind == RELU else positive * positive


def activation_of(experts: nn.Module) -> Activation:
    """The activation of an experts module. PlanError where kernels know none like it."""
    name = type(experts).__name__
    if getattr(experts, "has_post_expert_norm", False):
        raise PlanError(f'{name} has a norm behind its experts: leave out compute.kernels, or use "eager"')
    gated = has_gate(experts)
    own: Callable[[Tensor], Tensor] = getattr(experts, "_apply_gate" if gated else "act_fn")
    # Both sides of every limit that families use, in double precision: what agrees is no chance.
    outputs = torch.linspace(-30, 30, 512, dtype=torch.float64)[torch.randperm(512, generator=_generator())].view(8, 64)
    with torch.no_grad():
        wanted = own(outputs)
        for known in _candidates(experts, gated):
            if wanted.shape == known.apply(outputs).shape and torch.allclose(known.apply(outputs), wanted, atol=1e-5):
                return known
    raise PlanError(f'{name} computes between its products what grouped kernels do not know: use kernels = "eager"')


def _candidates(experts: nn.Module, gated: bool) -> Iterator[Activation]:
    limits = [UNLIMITED, *_numbers(experts, "limit", "swiglu_limit")]
    alphas = [1.0, *_numbers(experts, "alpha", "swiglu_alpha")]
    interleaved = gated and not is_concatenated(experts)
    for kind in KINDS:
        for alpha in alphas if kind == SILU else alphas[:1]:
            for limit in limits if gated else limits[:1]:
                for plus in (0.0, 1.0) if gated else (0.0,):
                    yield Activation(kind, gated, interleaved, alpha, limit, plus)


def _numbers(experts: nn.Module, *names: str) -> list[float]:
    found = (getattr(experts, name, None) for name in names)
    return [float(value) for value in found if isinstance(value, int | float)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
