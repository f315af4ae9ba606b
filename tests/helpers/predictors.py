"""Fitted predictors without fitting: modules of random weights, made exact and written as artefacts."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.fit.examples import vocabulary
from experiments.fit.export import export
from experiments.fit.fit_predictor import find_predictor
from experiments.fit.modules import Predictor, Shape
from experiments.fit.train import make_modules
from policies.learned.artefact import Artefact, Card, Fitted, load_artefact, save_artefact
from tests.helpers.traces import make_trace
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

UNUSED = 65535


def random_artefact(path: Path, predictor: str, trace: Trace, *, distance: int = 1, seed: int = 0) -> Artefact:
    """An artefact for the model of `trace`, its weights drawn so that every feature and every nonlinearity matters."""
    kind = find_predictor(predictor)
    distance = 0 if kind.purpose == "eviction" else distance
    index = vocabulary(trace, 5)
    shape = Shape(kind.blocks, trace.num_experts, int(index.max(initial=0)) + 1)
    modules = make_modules(kind, shape, trace.layers - distance, seed, {})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.normal_(0, 0.7, generator=generator)
    return write_artefact(path, list(modules), kind, trace, index, distance)


def write_artefact(
    path: Path, modules: list[Any], kind: type[Predictor], trace: Trace, index: np.ndarray, distance: int
) -> Artefact:
    """The modules as an artefact that was fitted on nothing."""
    program, tensors = export(modules, index)
    model = trace.manifest.model
    card = Card(
        predictor="random",
        purpose="eviction" if kind.purpose == "eviction" else "prefetch",
        experts_per_layer=list(trace.manifest.experts_per_layer),
        top_k=trace.top_k,
        distance=distance,
        blocks=kind.blocks,
        program=program,
        fitted=Fitted(model=model.id, config_sha256=model.config_sha256, trace_digest="", requests=[], tokens=0),
        seed=0,
        parameters=sum(tensor.size for name, tensor in tensors.items() if name != "index"),
        operations_per_row=1000,
        tensors_sha256="",
    )
    path.mkdir()
    save_artefact(path, card, tensors)
    return load_artefact(path, card.purpose)


def varied_trace(path: Path, seed: int = 0, *, steps: int = 30, layers: int = 4, experts: int = 6, k: int = 2) -> Trace:
    """Steps of one to four tokens of several requests, layers of unequal width, unused slots, weights, lookahead."""
    rng = np.random.default_rng(seed)
    wide = [experts, *np.random.default_rng(layers).integers(k + 1, experts + 1, layers - 1).tolist()]
    sizes = rng.integers(1, 5, steps)
    tokens = int(sizes.sum())
    chosen = np.stack([rng.random((tokens, n)).argsort(axis=1)[:, :k] for n in wide], axis=1).astype(np.uint16)
    chosen[rng.random(chosen.shape) < 0.1] = UNUSED
    step = np.repeat(np.arange(steps), sizes)
    return make_trace(
        path,
        chosen,
        num_experts=wide,
        step=step,
        request=step // 10,
        phase=np.where(sizes[step] > 1, PREFILL, DECODE),
        token_id=rng.integers(0, 9, tokens),
        weights=rng.random(chosen.shape).astype(np.float16),
        lookahead={d: rng.normal(0, 2, (tokens, layers - d, experts)).astype(np.float16) for d in (1, 2)},
    )
