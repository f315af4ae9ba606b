"""A gate: the router of one MoE layer, as a function from hidden states to one number per expert."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracekit.errors import ModelError

PROBE_TOKENS = 8
WATCHED = "tracekit_watched"  # attribute of a collector's forward: the module's own
Reader = Callable[[object], tuple[Tensor, Tensor]]
_TOLERANCE = 0.02  # of a log score; bfloat16 weights carry 2^-8, the wrong function is off by about 1


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """How the logits of one router are had, without its top-k where that gives the very same numbers.

    `form` is "linear" or "linear-fp32" when a probe showed the router's logits to equal `weight @ hidden +
    bias` bit for bit (in the weights' own precision, or in float32), else "output": the router itself is
    called. A router that needs more than hidden states and block (token ids, say) cannot be called alone; it
    counts as "linear". `of_probabilities` marks routers that return probabilities instead; their logarithm
    serves as logits. A router with a `width` beyond `num_experts` may choose to compute nothing; the logits of
    those choices come last and are left out. `at` is the logits' place in the router's output, where known.
    """

    router: nn.Module
    block: nn.Module
    num_experts: int
    weight: Tensor | None
    bias: Tensor | None
    form: Literal["linear", "linear-fp32", "output"] = "output"
    of_probabilities: bool = False
    width: int = 0
    at: int | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] as the router receives it -> logits [tokens, experts], in the router's own precision.

        Raises ModelError for a router that does not show its logits.
        """
        if (
            self.form == "linear" and self.weight is not None and not self.width
        ):  # on every layer of every token, so without detours
            rows = hidden if hidden.dim() == 2 else hidden.reshape(-1, hidden.shape[-1])
            return functional.linear(rows, self.weight, self.bias)
        if self.form == "output":
            logits = self.logits_of(self._call(hidden))
            if logits is not None:
                return logits
            if self.weight is None:
                raise ModelError(f"the router {type(self.router).__name__} does not show its logits")
        return self._linear(hidden, in_float=self.form == "linear-fp32")

    def logits_of(self, output: object) -> Tensor | None:
        """The logits [tokens, experts] within what the router returned; None when they are not there."""
        # Routers return (logits, weights, indices, ...); where top-k is all experts, only the order tells.
        width = self.width or self.num_experts
        items = output if isinstance(output, tuple | list) else (output,)
        for tensor in items if self.at is None else items[self.at : self.at + 1]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[-1] == width:
                logits = tensor.reshape(-1, width)[:, : self.num_experts]
                return logits.log() if self.of_probabilities else logits
        return None

    def _linear(self, hidden: Tensor, *, in_float: bool) -> Tensor:
        assert self.weight is not None
        rows, weight, bias = hidden.reshape(-1, hidden.shape[-1]), self.weight, self.bias
        if in_float:
            rows, weight, bias = rows.float(), weight.float(), None if bias is None else bias.float()
        logits = functional.linear(rows, weight, bias)
        return logits if not self.width else logits[:, : self.num_experts]

    def _call(self, hidden: Tensor) -> object:
        # `forward`, not `__call__`, and not a collector's: they must not see a call that the model did not make.
        forward = getattr(self.router.forward, WATCHED, self.router.forward)
        return forward(hidden, **_further_arguments(self.router, self.block))


def find_gate(
    router: nn.Module,
    block: nn.Module,
    num_experts: int,
    hidden: int,
    dtype: torch.dtype,
    *,
    width: int = 0,
    reader: Reader | None = None,
    chosen: tuple[int, ...] = (),
) -> tuple[Gate, str]:
    """The gate of `router` and its score function: "softmax", "sigmoid" or "unknown".

    Both are found by running the router on a few fixed random rows [8, hidden], so no family is named here; a
    router on the meta device cannot be run and gets the form "output" and an unknown score function. `reader`
    gives (ids, weights) of what the router returns, where it does not return them as they are, and `chosen` the
    places in the output that it reads.
    """
    weight, bias = _projection(router, width or num_experts, hidden)
    gate = Gate(router, block, num_experts, weight, bias, width=width if width > num_experts else 0)
    with torch.no_grad():
        rows = probe_rows(router, hidden, dtype)
        if rows is None:
            return gate, "unknown"
        probe = _run(gate, rows)
        if probe is None and (wider := _wider(gate, rows)):
            gate = replace(gate, width=wider)
            probe = _run(gate, rows)
        if probe is None:
            return (gate if weight is None else replace(gate, form="linear")), "unknown"
        place = _place(gate, *probe, chosen)
        if place:  # not the first candidate
            gate = replace(gate, at=place)
            probe = _run(gate, rows)
        spread = 0.0 if probe is None else float(probe[1].float().std())
        if probe is None or not 0 < spread < float("inf"):
            return gate, "unknown"
        # A spread of about 1 tells score functions apart whatever the scale of the weights.
        probe = _run(gate, probe[0] / spread)
        if probe is None:
            return gate, "unknown"
        rows, logits, output = probe
        if bool((logits >= 0).all()) and bool(((logits.float().sum(-1) - 1).abs() < _TOLERANCE).all()):
            return replace(gate, of_probabilities=True), "softmax"
        if _same(gate, rows, logits, in_float=False):
            gate = replace(gate, form="linear")
        elif _same(gate, rows, logits, in_float=True):
            gate = replace(gate, form="linear-fp32")
        pair = _pair(output) if reader is None else reader(output)
        everything = replace(gate, num_experts=gate.width or num_experts).logits_of(output)
        if pair is None or everything is None:
            return gate, "unknown"
        return gate, score_function(everything.float(), *pair)


def probe_rows(router: nn.Module, hidden: int, dtype: torch.dtype) -> Tensor | None:
    """A few fixed random rows [8, hidden] where the router runs; None on the meta device, where nothing does."""
    device = next((parameter.device for parameter in router.parameters()), torch.device("meta"))
    if device.type == "meta":  # unless the weights are elsewhere only while they rest
        hooks = (getattr(module, "_hf_hook", None) for module in router.modules())  # accelerate's
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        device = next((torch.device(found) for found in devices if found is not None), device)
    if device.type == "meta":
        return None
    rows = torch.randn(PROBE_TOKENS, hidden, generator=torch.Generator().manual_seed(0))
    return rows.to(device=device, dtype=dtype)


def run_router(router: nn.Module, block: nn.Module, rows: Tensor) -> Iterator[tuple[Tensor, object]]:
    """(rows as given to it, what it returned) for each shape of rows that a router takes on its own."""
    gate = Gate(router, block, 0, None, None)
    for shaped in (rows, rows.unsqueeze(0)):
        try:
            yield shaped, gate._call(shaped.clone())  # a router may scale its input in place
        except Exception:
            continue


def _run(gate: Gate, rows: Tensor) -> tuple[Tensor, Tensor, object] | None:
    """(rows as the router takes them, its logits, all it returned); None when it cannot be run on its own."""
    for shaped, output in run_router(gate.router, gate.block, rows.reshape(-1, rows.shape[-1])):
        logits = gate.logits_of(output)
        if logits is not None and logits.shape[0] == PROBE_TOKENS:
            return shaped, logits, output
    return None


def _wider(gate: Gate, rows: Tensor) -> int:
    """The columns of a router that scores more than the experts, less than twice as many; 0 for others."""
    for _, output in run_router(gate.router, gate.block, rows):
        for item in output if isinstance(output, tuple | list) else (output,):
            if isinstance(item, Tensor) and item.is_floating_point() and len(item) == PROBE_TOKENS:
                return item.shape[-1] if gate.num_experts < item.shape[-1] < 2 * gate.num_experts else 0
    return 0


def _place(gate: Gate, rows: Tensor, logits: Tensor, output: object, chosen: tuple[int, ...]) -> int | None:
    """Where in the output the logits are: the router's projection, where that is one of several candidates."""
    if not isinstance(output, tuple | list):
        return None
    candidates = []
    for place in range(len(output)):
        found = replace(gate, at=place).logits_of(output)
        if place not in chosen and found is not None and found.shape == logits.shape:
            candidates.append((place, found))
    if gate.weight is not None and not gate.weight.is_meta:
        projected = gate._linear(rows.to(gate.weight.dtype), in_float=True)
        for place, found in candidates:
            if torch.allclose(found.float(), projected, atol=_TOLERANCE):
                return place
    return candidates[0][0] if candidates else None


def _same(gate: Gate, rows: Tensor, logits: Tensor, *, in_float: bool) -> bool:
    if gate.weight is None or gate.weight.is_meta:
        return False
    try:
        return torch.equal(gate._linear(rows, in_float=in_float).float(), logits.float())
    except RuntimeError:  # the router's own precision differs from the hidden states'
        return False


def _pair(output: object) -> tuple[Tensor, Tensor] | None:
    """(ids, weights) that a router returned beside its logits."""
    items = output if isinstance(output, tuple | list) else (output,)
    tensors = [tensor for tensor in items if isinstance(tensor, Tensor) and tensor.dim() == 2]
    indices = [tensor for tensor in tensors if not tensor.is_floating_point()]
    if not indices or indices[0].shape[-1] == 0:
        return None
    top_k = indices[0].shape[-1]
    weights = [tensor for tensor in tensors[1:] if tensor.is_floating_point() and tensor.shape[-1] == top_k]
    return (indices[0], weights[0]) if weights else None


def score_function(logits: Tensor, indices: Tensor, weights: Tensor) -> str:
    """Which function of the logits [tokens, experts] the weights [tokens, k] are, up to a factor by token."""
    used = ((indices >= 0) & (indices < logits.shape[-1])).all(-1)
    logits, indices, scores = logits[used], indices[used].long(), weights[used].float().log()
    top_k = indices.shape[-1]
    errors = {}
    for name, function in (
        ("softmax", functional.log_softmax(logits, -1)),
        ("sigmoid", functional.logsigmoid(logits)),
    ):
        difference = scores - function.gather(-1, indices)
        # Normalising makes the factor differ by token; with a single expert that leaves nothing to see.
        factor = difference.mean() if top_k == 1 else difference.mean(-1, keepdim=True)
        errors[name] = float((difference - factor).abs().max()) if len(difference) else float("nan")
    best, other = sorted(errors, key=lambda name: errors[name])
    return best if errors[best] < _TOLERANCE and errors[other] > 2 * _TOLERANCE else "unknown"


def _projection(router: nn.Module, num_experts: int, hidden: int) -> tuple[Tensor | None, Tensor | None]:
    """The one weight [experts, hidden] of a router and its bias [experts], if any."""
    found = [
        (module, weight)
        for module in router.modules()
        for weight in module.parameters(recurse=False)
        if tuple(weight.shape) == (num_experts, hidden)
    ]
    if len(found) != 1:
        return None, None
    module, weight = found[0]
    bias = getattr(module, "bias", None)
    return weight, bias if isinstance(bias, Tensor) and tuple(bias.shape) == (num_experts,) else None


def _further_arguments(router: nn.Module, block: nn.Module) -> dict[str, object]:
    """What else a router takes, where its block keeps it under the same name (a selection bias)."""
    parameters = list(signature(router.forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    return {p.name: getattr(block, p.name) for p in named if hasattr(block, p.name)}
