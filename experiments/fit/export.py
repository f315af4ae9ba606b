"""From a torch module to whole numbers: its operations traced, its weights rounded.

`torch.fx` reads the module's graph; each operation becomes one of `policies.learned.arithmetic`. A module that does
anything else is refused, in a line that names what.
"""

import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from experiments.fit.modules import Predictor
from policies.learned.arithmetic import FINE, UNIT, Kind, Operation, Program
from tracekit.errors import PolicyError

LARGEST = 2**31 - 1
_FUNCTIONS: dict[object, Kind] = {
    torch.relu: "relu",
    functional.relu: "relu",
    torch.clamp: "clamp",
    torch.clip: "clamp",
    functional.hardtanh: "clamp",
    operator.add: "add",
    torch.add: "add",
    operator.sub: "subtract",
    torch.sub: "subtract",
    torch.cat: "cat",
    operator.getitem: "slice",
}
_METHODS: dict[object, Kind] = {"relu": "relu", "clamp": "clamp", "clip": "clamp", "add": "add", "sub": "subtract"}
INDEX = "index"


def export(modules: Iterable[nn.Module], index: np.ndarray) -> tuple[Program, dict[str, np.ndarray]]:
    """The modules of all source layers, alike but for their weights, as one program and its tensors i32.

    Raises PolicyError for an operation that has no exact counterpart, or a weight that is too large for one.
    """
    traced = [_trace(module) for module in modules if isinstance(module, Predictor)]
    programs, parts = [program for program, _ in traced], [tensors for _, tensors in traced]
    if any(program != programs[0] for program in programs):
        raise PolicyError("the modules of different layers do different things: their forward may not depend on layers")
    tensors = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    if any(operation.kind == "embedding" for operation in programs[0].operations):
        tensors[INDEX] = index
    largest = max((int(np.abs(tensor).max(initial=0)) for tensor in tensors.values()), default=0)
    if largest > LARGEST:
        raise PolicyError("a weight is too large to be made exact: fit with more weight decay, or scale it down")
    return programs[0], {name: tensor.astype(np.int32) for name, tensor in tensors.items()}


def _trace(module: Predictor) -> tuple[Program, dict[str, np.ndarray]]:
    name = type(module).__name__
    try:
        graph = fx.Tracer().trace(module.eval())
    except Exception as error:  # a user's forward may fail in any way
        raise PolicyError(f"{name}.forward cannot be traced: {type(error).__name__}: {error}") from None
    operations: list[Operation] = []
    tensors: dict[str, np.ndarray] = {}
    alias: dict[str, str] = {}
    outputs: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.target not in ("x", "state", "token"):
                raise PolicyError(f"{name}.forward takes {node.target!r}: it may take x, state and token")
            alias[node.name] = node.target
        elif node.op == "output":
            given = node.args[0] if isinstance(node.args[0], tuple) else (node.args[0],)
            outputs = [alias[part.name] for part in given]
        else:
            converted = _convert(name, module, node, alias, tensors)
            if converted is None:  # does nothing when it serves
                alias[node.name] = alias[node.args[0].name]
            else:
                operations.append(converted)
                alias[node.name] = converted.output
    return Program(operations=operations, outputs=outputs, state=module.state), tensors


def _convert(
    name: str, module: Predictor, node: fx.Node, alias: dict[str, str], tensors: dict[str, np.ndarray]
) -> Operation | None:
    arguments: list[object] = [*node.args, *node.kwargs.values()]
    nodes = [argument for argument in arguments if isinstance(argument, fx.Node)]
    kind: Kind | None = None
    if node.op == "call_module":
        part = module.get_submodule(str(node.target))
        if isinstance(part, nn.Dropout | nn.Identity):
            return None
        if isinstance(part, nn.Linear):
            held = [f"{node.target}.weight", f"{node.target}.bias"]
            weight = part.weight.detach().double().numpy()
            bias = np.zeros(len(weight)) if part.bias is None else part.bias.detach().double().numpy()
            tensors[held[0]], tensors[held[1]] = _rounded(weight * FINE), _rounded(bias * FINE * UNIT)
            return _operation("linear", node, nodes[:1], alias, held)
        if isinstance(part, nn.Embedding):
            held = [INDEX, f"{node.target}.weight"]
            tensors[held[1]] = _rounded(part.weight.detach().double().numpy() * UNIT)
            return _operation("embedding", node, nodes[:1], alias, held)
        if isinstance(part, nn.ReLU):
            return _operation("relu", node, nodes[:1], alias)
        if isinstance(part, nn.Hardtanh):
            return _operation("clamp", node, nodes[:1], alias, numbers=_bounds([part.min_val, part.max_val]))
    elif node.op == "call_function":
        kind = _FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        kind = _METHODS.get(node.target)
    if kind == "clamp" and len(nodes) == 1:
        return _operation(kind, node, nodes, alias, numbers=_bounds(arguments[1:3]))
    if kind == "cat" and isinstance(arguments[0], list | tuple) and arguments[1:] in ([1], [-1]):
        joined = [part for part in arguments[0] if isinstance(part, fx.Node)]
        if len(joined) == len(arguments[0]):
            return _operation(kind, node, joined, alias)
    if kind == "slice" and len(nodes) == 1 and isinstance(arguments[1], tuple) and len(arguments[1]) == 2:
        rows, columns = arguments[1]
        plain = rows == slice(None) and isinstance(columns, slice) and columns.step is None
        if plain and isinstance(columns.start, int | None) and isinstance(columns.stop, int):
            return _operation(kind, node, nodes, alias, numbers=[columns.start or 0, columns.stop])
    if (kind == "relu" and len(nodes) == 1) or (kind in ("add", "subtract") and len(nodes) == len(arguments) == 2):
        return _operation(kind, node, nodes, alias)
    raise PolicyError(
        f"{name}.forward does {getattr(node.target, '__name__', node.target)}, which has no exact counterpart: "
        "there are Linear, Embedding, ReLU, clamp (both bounds), +, -, cat (of columns) and x[:, first:last]"
    )


def _operation(
    kind: Kind,
    node: fx.Node,
    inputs: Sequence[fx.Node],
    alias: dict[str, str],
    tensors: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> Operation:
    return Operation(
        kind=kind,
        inputs=[alias[part.name] for part in inputs],
        output=f"%{node.name}",
        tensors=list(tensors),
        numbers=list(numbers),
    )


def _bounds(given: Sequence[object]) -> list[int]:
    numbers = [bound for bound in given if isinstance(bound, int | float)]
    if not len(numbers) == len(given) == 2:
        raise PolicyError("clamp needs both of its bounds, as numbers")
    return [round(bound * UNIT) for bound in numbers]


def _rounded(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise PolicyError("fitting gave weights that are no numbers: fit with a smaller learning rate")
    rounded: np.ndarray = np.rint(values)
    return rounded
