"""record: prompts through a model, its routing into a trace."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracekit.errors import ModelError, TraceError
from tracekit.recorder.collector import Routing, RoutingCollector
from tracekit.recorder.describe import describe
from tracekit.recorder.generation import Decoding, Forward, Sampler, Scoring
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import Prompt, encode_prompts, prompts_digest
from tracekit.recorder.seam import moe_layers
from tracekit.writer import TraceWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


def record(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    output: str | Path,
    options: RecordOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Record the routing of `model` on `prompts` into a new trace at `output`; returns its path.

    Request r of the trace is prompt r. Prompts are taken in batches of `options.batch_size`, in order; a step
    is one forward pass, and padding is not in the trace. With `options.resume` an unfinished trace of the
    same recording is continued behind its last shard, and ends up with the rows it would have had.
    `progress(done, total)` is called after each pass, in tokens (an upper bound: a request that stops early
    counts as all its tokens).

    Raises ModelError (no experts, prompt too long, numbers not finite, out of memory), ImportFormatError (a
    prompt that cannot be encoded) and TraceError (output exists, cannot be written, or is of another
    recording).
    """
    options = options or RecordOptions()
    if not prompts:
        raise ModelError("there are no prompts to record")
    layers = moe_layers(model)
    encoded = encode_prompts(prompts, tokenizer, generating=not options.score)
    check_fit(model, prompts, encoded, 0 if options.score else options.max_new_tokens)
    collector = RoutingCollector(layers, logits=options.logits, lookahead=options.lookahead)
    notes = []
    if any(layer.gate.of_probabilities for layer in layers):
        notes.append("the routers return probabilities; their logarithms were recorded as logits")
    manifest = describe(model, layers, options, prompts_digest(prompts), notes=notes)
    was_training = model.training
    model.train(False)
    try:
        with TraceWriter(output, manifest, resume=options.resume) as writer, collector:
            _record_batches(model, encoded, writer, collector, options, progress or (lambda done, total: None))
    except torch.OutOfMemoryError:
        raise ModelError(
            f"out of memory with batches of {options.batch_size}: use a smaller batch size, shorter prompts, "
            "or fewer recorded logits; finished shards are kept and can be resumed"
        ) from None
    finally:
        model.train(was_training)
    return Path(output)


def stop_tokens(model: nn.Module, tokenizer: Any = None) -> frozenset[int]:
    """The token ids that end a text, as the model's generation settings, its config, or its tokenizer say."""
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


@dataclass(slots=True)
class _Rows:
    """The rows of one batch, gathered over its passes."""

    columns: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    routing: list[Routing] = field(default_factory=list)

    def add(self, step: int, base: int, forward: Forward, routing: Routing) -> None:
        count = len(forward.rows)
        for name, values in (
            ("step", np.full(count, step, dtype=np.int32)),
            ("request", forward.request + np.int32(base)),
            ("position", forward.position),
            ("phase", np.full(count, forward.phase, dtype=np.uint8)),
            ("token_id", forward.token_id),
        ):
            self.columns.setdefault(name, []).append(values)
        self.routing.append(routing)

    def write(self, writer: TraceWriter) -> None:
        logits = [part.logits for part in self.routing if part.logits is not None]
        distances = self.routing[0].lookahead
        writer.append(
            **{name: np.concatenate(parts) for name, parts in self.columns.items()},
            experts=np.concatenate([part.experts for part in self.routing]),
            weights=np.concatenate([part.weights for part in self.routing]),
            logits=np.concatenate(logits) if logits else None,
            lookahead={d: np.concatenate([part.lookahead[d] for part in self.routing]) for d in distances},
        )


def _record_batches(
    model: nn.Module,
    encoded: list[list[int]],
    writer: TraceWriter,
    collector: RoutingCollector,
    options: RecordOptions,
    progress: Progress,
) -> None:
    start, unflushed = writer.next_request, 0
    if start > len(encoded) or (start % options.batch_size and start != len(encoded)):
        raise TraceError(f"cannot resume {writer.path}: it ends within a batch, after {start} requests")
    costs = [len(ids) if options.score else options.max_new_tokens for ids in encoded]
    total, step = sum(costs), writer.next_step
    stop = stop_tokens(model)
    for base in range(start, len(encoded), options.batch_size):
        prompts = encoded[base : base + options.batch_size]
        rows, done = _Rows(), sum(costs[:base])
        for forward, within in _passes(model, prompts, base, stop, options):
            rows.add(step, base, forward, collector.take(forward.rows))
            step += 1
            progress(done + within, total)
        rows.write(writer)
        unflushed += sum(len(part.experts) for part in rows.routing)
        # A boundary depends only on the rows since the last one, so that resuming makes the same shards.
        if unflushed >= options.shard_rows:
            writer.flush()
            unflushed = 0


def _passes(
    model: nn.Module, prompts: list[list[int]], base: int, stop: frozenset[int], options: RecordOptions
) -> Iterator[tuple[Forward, int]]:
    """The passes of one batch, each with the tokens of the batch that are done after it."""
    if options.score:
        done = 0
        for forward in Scoring(model, prompts, chunk=options.chunk).passes():
            done += len(forward.rows)
            yield forward, done
        return
    samplers = None
    if options.do_sample:
        seeds = [np.random.default_rng([options.seed, base + request]) for request in range(len(prompts))]
        samplers = [Sampler(options.temperature, options.top_p, rng) for rng in seeds]
    batch = Decoding(model, prompts, max_new_tokens=options.max_new_tokens, stop=stop, samplers=samplers)
    for forward in batch.passes():
        yield (
            forward,
            sum(
                options.max_new_tokens if batch.is_finished(request) else len(tokens)
                for request, tokens in enumerate(batch.generated)
            ),
        )


def check_fit(model: "PreTrainedModel", prompts: Sequence[Prompt], encoded: list[list[int]], new: int) -> None:
    """Refuse token ids and lengths (with `new` tokens behind) that the model has no rows for. Raises ModelError."""
    embeddings: Any = model.get_input_embeddings()
    vocabulary = int(embeddings.weight.shape[0])
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if max(ids) >= vocabulary:
            raise ModelError(
                f"prompt {str(prompt.id)[:60]!r} has token {max(ids)}, but the model knows {vocabulary}: "
                "tokenizer and model do not belong together"
            )
        if isinstance(limit, int) and len(ids) + new > limit:
            raise ModelError(
                f"prompt {str(prompt.id)[:60]!r} has {len(ids)} tokens; with {new} new ones it exceeds "
                f"the model's {limit} positions: shorten it or ask for fewer"
            )
