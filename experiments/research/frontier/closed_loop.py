"""One plan in the engine, a token at a time, on given text: its routing, and how well each token was predicted.

Which experts are there decides what the plan computes, and that decides what later gates choose: the closed loop. So
routing and loss are of the same pass.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from engine.plan.plan import Plan
from engine.runtime.memory import release
from engine.runtime.offload import offload
from engine.runtime.offload_state import offloaded
from tracekit.recorder.models import load_tokenizer
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import Prompt
from tracekit.recorder.recorder import record
from tracekit.rows import DECODE
from tracekit.trace import Trace
from tracekit.writer import TraceWriter


class Passed(NamedTuple):
    """What one plan made of the texts: its routing, and by text f64 [texts] the nats that its tokens took, those of the
    divergence from the unaltered model, and how many tokens both would have chosen; `altered`: the share of choices of
    another expert, or dropped."""

    trace: Trace
    nats: np.ndarray
    divergence: np.ndarray
    agreed: np.ndarray
    altered: float
    dropped: float


def passed(
    checkpoint: Path,
    plan: Plan,
    texts: Sequence[Prompt],
    path: Path,
    unaltered: list[Tensor] | None = None,
    *,
    keep: Callable[[list[Tensor]], object] | None = None,
) -> Passed:
    """The texts under a plan, one after the other, the cache going on; the trace is written to `path`, and what counts
    beside it: what is there already is read.

    `unaltered` has the log-probabilities [tokens, vocabulary] of each text under the model as it is stored; `keep` is
    handed this pass's own. Then gates' logits are recorded, too.
    """
    beside = path.with_suffix(".npz")
    if not beside.exists() or (keep is not None):
        model = offload(checkpoint, plan, dtype="float32", device="cpu")
        seen: list[Tensor] = []
        with offloaded(model) as state, _watched(model, seen):
            options = RecordOptions(score=True, chunk=1, logits=keep is not None)
            with TemporaryDirectory(dir=path.parent) as folder:
                read = record(model, load_tokenizer(checkpoint), texts, Path(folder) / path.name, options)
                shutil.rmtree(path, ignore_errors=True)  # of a pass that was killed
                trace = as_decoded(Trace.open(read), path)
            altered = state.altered
        said = _by_text(trace, seen)
        del model
        release()
        if keep is not None:
            keep(said)
        figures = [_figures(trace, number, one, unaltered) for number, one in enumerate(said)]
        choices = 1 if altered is None else max(altered.choices, 1)
        shares = (0, 0) if altered is None else (altered.replaced + altered.dropped, altered.dropped)
        np.savez(beside, figures=np.array(figures), shares=np.array(shares) / choices)
    with np.load(beside, allow_pickle=False) as kept:
        nats, divergence, agreed = kept["figures"].T
        return Passed(Trace.open(path), nats, divergence, agreed, *kept["shares"].tolist())


@contextmanager
def _watched(model: PreTrainedModel, seen: list[Tensor]) -> Iterator[None]:
    """Each pass's last token's logits come to `seen`."""

    def keep(module: nn.Module, arguments: object, output: CausalLMOutputWithPast) -> None:
        assert output.logits is not None
        seen.append(output.logits[0, -1].detach().clone())

    hook = model.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def as_decoded(read: Trace, path: Path) -> Trace:
    """The same tokens, each a step of its own already, as if the model had written them."""
    with TraceWriter(
        path, read.manifest.without_rows([*read.manifest.notes, "given tokens, as decode steps"])
    ) as writer:
        writer.append(
            step=read.step,
            request=read.request,
            position=read.position,
            phase=np.full(read.tokens, DECODE, np.uint8),
            token_id=read.token_id,
            experts=read.experts,
            weights=read.weights,
            logits=read.logits,
        )
    return Trace.open(path)


def _by_text(trace: Trace, seen: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities f64 [tokens, vocabulary] of each text."""
    rows = torch.log_softmax(torch.stack(list(seen)).double(), -1)
    return list(torch.split(rows, np.bincount(trace.request).tolist()))


def _figures(trace: Trace, number: int, said: Tensor, unaltered: Sequence[Tensor] | None) -> tuple[float, float, float]:
    """Nats of a text's tokens but the first, which nothing predicts; divergence in nats; tokens agreed upon."""
    ids = torch.from_numpy(trace.token_id[trace.request == number].astype(np.int64))
    own = said[:-1]
    nats = -own.gather(-1, ids[1:, None])
    if unaltered is None:
        return math.fsum(nats.flatten().tolist()), 0.0, float(len(own))
    known = unaltered[number][:-1]
    apart = (known.exp() * (known - own)).sum(-1)
    return (
        math.fsum(nats.flatten().tolist()),
        math.fsum(apart.tolist()),
        float((own.argmax(-1) == known.argmax(-1)).sum()),
    )
