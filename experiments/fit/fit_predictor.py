"""`fit`: a predictor from a trace, tested on requests that it was not fitted on."""

import contextlib
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from torch import nn

from engine.decisions.foresight import Scores
from experiments.fit.counted import Counted
from experiments.fit.examples import FAR, check_readable, make_data, vocabulary
from experiments.fit.export import export
from experiments.fit.judge import judge_predictor, measure_visit
from experiments.fit.modules import PREDICTORS, Predictor, Shape
from experiments.fit.split import split_requests
from experiments.fit.train import CHECKPOINT, Training, forward_names, is_checkpoint_of, make_modules, train
from policies.learned.arithmetic import Program
from policies.learned.artefact import CARD, Artefact, Card, Fitted, load_artefact, save_artefact
from policies.learned.session import Session
from policies.registry import load_path
from tracekit.demand import step_starts
from tracekit.durable import aside, lock_directory, reporting, tidy
from tracekit.edit import Selection, slice_trace
from tracekit.errors import PolicyError, did_you_mean
from tracekit.requests import request_digests
from tracekit.trace import Trace

MOST_TOKENS = 4096
"""Rows of an embedding at most: the most frequent tokens."""
CHECKED_STEPS = 16
PARTS = "parts"
"""Where, in the predictor's directory and aside, the requests that it is fitted on and tested on lie meanwhile."""
Hyperparameters = dict[str, int | float | str]


def fit(
    predictor: str,
    trace: Trace,
    output: Path,
    *,
    held_out: Sequence[int],
    distance: int = 1,
    options: Training | None = None,
    hyperparameters: dict[str, str] | None = None,
    progress: Callable[[int], object] = lambda amount: None,
) -> Card:
    """Fit `predictor` (a name, or path.py:Class) on all requests of `trace` but `held_out`, and write it to `output`.

    A request that holds what a held-out one holds is held out, too. The card says what the predictor is worth on those,
    and what counting alone is (`experiments.fit.counted`). A fit that was cut off goes on where it was, with the same
    result. Raises PolicyError, TraceError.
    """
    kind = find_predictor(predictor)
    distance = 0 if kind.purpose == "eviction" else distance
    if kind.purpose != "eviction" and not 1 <= distance < trace.layers:
        raise PolicyError(f"a distance of {distance} among {trace.layers} MoE layers: give 1 to {trace.layers - 1}")
    options = options or Training(epochs=kind.epochs)
    given = checked_hyperparameters(kind, hyperparameters or {})
    check_readable(kind.blocks, by_token="token" in forward_names(kind), trace=trace, distance=distance)
    fitted, tested = split_requests(trace, held_out)
    if not fitted:
        raise PolicyError(
            f"{trace.path} has no request to fit on beside those held out and their copies: give more, or hold out "
            "fewer"
        )
    identity = _identity(kind, trace, fitted, distance, options, given)
    if (output / CARD).exists():
        return _finished(output, identity, "eviction" if kind.purpose == "eviction" else "prefetch")
    with _alone(output), aside(output / PARTS) as folder:
        own = part_of(trace, fitted, folder / "own.trace")
        index = vocabulary(own, MOST_TOKENS)
        shape = Shape(kind.blocks, trace.num_experts, int(index.max(initial=0)) + 1)
        sources = trace.layers - distance
        modules = make_modules(kind, shape, sources, options.seed, given)
        check_exportable(modules, shape, index, sources)
        data = make_data(own, kind.blocks, distance, index)
        train(
            modules,
            data,
            shape,
            options,
            checkpoint=output / CHECKPOINT,
            identity=identity,
            progress=progress,
        )
        program, tensors = export(modules, index)
        weights = [(name, tensor) for name, tensor in tensors.items() if name != "index"]
        card = Card(
            predictor=predictor if predictor in PREDICTORS else kind.__name__,
            purpose="eviction" if kind.purpose == "eviction" else "prefetch",
            experts_per_layer=list(trace.manifest.experts_per_layer),
            top_k=trace.top_k,
            distance=distance,
            blocks=kind.blocks,
            program=program,
            fitted=Fitted(
                model=trace.manifest.model.id,
                config_sha256=trace.manifest.model.config_sha256,
                trace_digest=trace.digest,
                requests=sorted({digest for digests in request_digests(own).values() for digest in digests}),
                held_out=tested,
                tokens=own.tokens,
            ),
            seed=options.seed,
            hyperparameters={**given, **msgspec.structs.asdict(options)},
            versions={name: version(name) for name in ("torch", "numpy", "moe-tracekit")},
            parameters=sum(tensor.size for _, tensor in weights),
            operations_per_row=2 * _multiplied(program, tensors),
            tensors_sha256="",
        )
        # Only what has been judged is given its name: until then a fit that is cut off goes on where it was.
        unjudged = folder / "unjudged"
        unjudged.mkdir()
        save_artefact(unjudged, card, tensors)
        found = load_artefact(unjudged, card.purpose)
        check_steps(found, own)
        test = part_of(trace, card.fitted.held_out, folder / "test.trace") if card.fitted.held_out else None
        counted = None if card.own_layer or test is None else Counted(own, distance)
        card = msgspec.structs.replace(
            found.card,
            held_out={} if test is None else judge_predictor(found, test, counted),
            measured_ns_per_visit=measure_visit(found, own if test is None else test),
        )
        save_artefact(output, card, tensors)
    (output / CHECKPOINT).unlink(missing_ok=True)
    return load_artefact(output, card.purpose).card


def _finished(output: Path, identity: str, purpose: Literal["prefetch", "eviction"]) -> Card:
    """What `output` holds, if it is this fit, killed behind its last step: what is left of its making is removed.

    Raises PolicyError otherwise.
    """
    tidy(output / PARTS)
    if not is_checkpoint_of(output / CHECKPOINT, identity):
        raise PolicyError(f"{output} holds a fitted predictor: choose another --output, or remove it")
    with _alone(output):
        card = load_artefact(output, purpose).card
        (output / CHECKPOINT).unlink()
    return card


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """The directory, made if need be, with no other process writing to it."""
    with reporting(output):
        output.mkdir(parents=True, exist_ok=True)
    held = lock_directory(output)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def find_predictor(name: str) -> type[Predictor]:
    """The class behind a name or `path.py:Class`. Raises PolicyError."""
    if name in PREDICTORS:
        return PREDICTORS[name]
    if ".py:" not in name:
        raise PolicyError(
            f"unknown predictor {name!r}{did_you_mean(name, PREDICTORS)}; there are {', '.join(PREDICTORS)}, or give "
            "your own as path.py:Class"
        )
    found = load_path(name)
    if not (isinstance(found, type) and issubclass(found, Predictor)):
        raise PolicyError(f"predictor {name!r} is not a subclass of {Predictor.__module__}.Predictor")
    if found.purpose not in ("prefetch", "eviction"):
        raise PolicyError(f"predictor {name!r}: purpose is {found.purpose!r}, not 'prefetch' or 'eviction'")
    if not {"x", "token"} & set(forward_names(found)):
        raise PolicyError(f"predictor {name!r}: write forward(self, x), or with state or token")
    return found


def check_exportable(modules: nn.ModuleList, shape: Shape, index: np.ndarray, sources: int) -> None:
    """Raise PolicyError now, before any training, unless the modules can be made exact and give scores of experts."""
    program, tensors = export(modules, index)
    program.check(
        {name: tensor.astype(np.float64) for name, tensor in tensors.items()}, sources, shape.features, shape.experts
    )


def checked_hyperparameters(kind: type[Predictor], given: dict[str, str]) -> Hyperparameters:
    """All hyperparameters of `kind`, the given texts in the place of defaults. Raises PolicyError."""
    known = {
        name: parameter.default
        for name, parameter in list(inspect.signature(kind).parameters.items())[1:]
        if isinstance(parameter.default, int | float | str)
    }
    for name, text in given.items():
        if name not in known:
            raise PolicyError(
                f"predictor {kind.__name__} has no hyperparameter {name!r}{did_you_mean(name, known)}; it has "
                f"{', '.join(known) or 'none'}"
            )
        try:
            known[name] = type(known[name])(text)
        except ValueError:
            raise PolicyError(f"hyperparameter {name} = {text!r} is not {type(known[name]).__name__}") from None
    return known


def part_of(trace: Trace, requests: Sequence[int], path: Path) -> Trace:
    """These requests of a trace as a trace."""
    return slice_trace(trace, Selection(requests=spelled(requests)), path)


def spelled(requests: Sequence[int]) -> str:
    """Request numbers as `tracekit slice --requests` takes them: `0:10,14`."""
    words = []
    numbers = sorted(set(requests))
    first = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            a, b = numbers[first], numbers[place - 1]
            words.append(str(a) if a == b else f"{a}:{b + 1}")
            first = place
    return ",".join(words)


def check_steps(artefact: Artefact, trace: Trace) -> None:
    """Raise PolicyError unless a session finds, step by step, what a pass over the trace finds: bit for bit."""
    card, starts = artefact.card, step_starts(trace.step)
    last = min(CHECKED_STEPS, len(starts) - 1)
    whole, _ = Scores(trace, artefact).piece(0, last)
    session = Session(artefact)
    lookahead = trace.lookahead(card.distance) if "lookahead" in card.blocks else None
    for step in range(last):
        rows = slice(int(starts[step]), int(starts[step + 1]))
        experts, weights = trace.experts_of(rows.start, rows.stop), trace.weights_of(rows.start, rows.stop)
        for layer in range(trace.layers):
            ahead = None
            if lookahead is not None and layer < card.sources:
                ahead = lookahead[rows, layer, : card.experts_per_layer[layer + card.distance]]
            own = None if weights is None else weights[:, layer]
            found = session.visit(layer, experts[:, layer], own, ahead, trace.token_id[rows])
            if found is None:
                continue
            wanted = whole[layer][step] if card.own_layer else whole[layer][rows]
            if not np.array_equal(found, wanted, equal_nan=True):
                raise PolicyError(
                    f"predictor {artefact.path} does not serve as it replays (step {step}, layer {layer})"
                )


def _multiplied(program: Program, tensors: dict[str, np.ndarray]) -> int:
    """Weights that one row of one layer is multiplied by."""
    return sum(
        int(tensors[operation.tensors[0]][0].size) for operation in program.operations if operation.kind == "linear"
    )


def _identity(
    kind: type[Predictor], trace: Trace, fitted: list[int], distance: int, options: Training, given: Hyperparameters
) -> str:
    """A digest of what a fit follows from."""
    file = inspect.getsourcefile(kind)
    source = b"" if file is None else Path(file).read_bytes()
    meaning = [kind.__name__, trace.digest, fitted, distance, options, given, FAR, MOST_TOKENS, version("torch")]
    return hashlib.sha256(msgspec.json.encode(meaning) + source).hexdigest()
