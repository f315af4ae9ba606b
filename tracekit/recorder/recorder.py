"""record: prompts through a model, its routing into a trace."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import nn

from tracekit.arrays import I32, U8
from tracekit.errors import ModelError, TraceError
from tracekit.recorder.background import Background
from tracekit.recorder.collector import RoutingCollector
from tracekit.recorder.describe import describe
from tracekit.recorder.encoding import Encoding, continues, reads_at_once
from tracekit.recorder.generation import Decoding, Forward, Scoring
from tracekit.recorder.layers import routed_layers
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.packing import Packed, Routing
from tracekit.recorder.prompts import Prompt, encode_prompts, prompts_digest
from tracekit.writer import TraceWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
BLOCK_PASSES = 64  # passes that are brought to the host together
BLOCK_VALUES = 1 << 22  # values of such a block at which it is brought there before


def record(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    output: str | Path,
    options: RecordOptions | None = None,
    progress: Progress | None = None,
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Record the routing of `model` on `prompts` into a new trace at `output`; returns its path.

    Request r of the trace is prompt r. Prompts are taken in batches of `options.batch_size`, in order; a step
    is one forward pass, and padding is not in the trace. With `options.resume` an unfinished trace of the
    same recording is continued behind its last shard, and ends up with the rows it would have had.
    `progress(done, total)` is called after each pass, in tokens (an upper bound: a request that stops early
    counts as all its tokens). `notes` are kept in the manifest.

    Raises ModelError (no experts, prompt too long, numbers not finite, out of memory), ImportFormatError (a
    prompt that cannot be encoded) and TraceError (output exists, cannot be written, or is of another
    recording).
    """
    options = options or RecordOptions()
    if not prompts:
        raise ModelError("there are no prompts to record")
    writes = None if options.score else continues(model)
    layers = routed_layers(model)
    encoded = encode_prompts(prompts, tokenizer, generating=not options.score)
    check_fit(model, prompts, encoded, 0 if options.score else options.max_new_tokens)
    collector = RoutingCollector(layers, logits=options.logits, lookahead=options.lookahead)
    said = list(notes)
    if any(layer.gate.of_probabilities for layer in layers):
        said.append("the routers return probabilities; their logarithms were recorded as logits")
    manifest = describe(model, layers, options, prompts_digest(prompts), notes=said)
    if any(prompt.domain for prompt in prompts):
        manifest = msgspec.structs.replace(manifest, domains=[prompt.domain or "" for prompt in prompts])
    was_training = model.training
    model.train(False)
    try:
        with TraceWriter(output, manifest, resume=options.resume) as writer, collector:
            _record_batches(model, writes, encoded, writer, collector, options, progress or (lambda done, total: None))
    except torch.OutOfMemoryError:
        raise ModelError(
            f"out of memory with batches of {options.batch_size}: use a smaller batch size, shorter prompts, "
            "or fewer recorded logits; finished shards are kept and can be resumed"
        ) from None
    finally:
        model.train(was_training)
    return Path(output)


def stop_tokens(model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None" = None) -> frozenset[int]:
    """The token ids that end a text, as the model's generation settings, its config, or its tokenizer say."""
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


class _Writing:
    """Passes of the batch being recorded, brought to the host in blocks and written batch by batch."""

    def __init__(self, writer: TraceWriter, collector: RoutingCollector, background: Background, shard: int) -> None:
        self._writer, self._collector, self._background = writer, collector, background
        self._shard_rows = shard
        self._passes: list[tuple[int, int, Forward]] = []  # step, first request of the batch, pass
        self._size = 0  # values that they keep on the device
        self._values = sum(layer.top_k for layer in collector.layers)
        if collector.with_logits or collector.distances:
            arrays = collector.with_logits + len(collector.distances)
            self._values += arrays * len(collector.layers) * collector.num_experts
        self._rows: list[tuple[dict[str, I32 | U8], Routing]] = []  # of the batch; the thread's
        self._unflushed = 0  # the thread's

    def add(self, step: int, base: int, forward: Forward) -> None:
        """A pass was made."""
        self._passes.append((step, base, forward))
        self._collector.check_finished()
        if self._collector.waiting != len(self._passes):
            raise ModelError("the model runs its MoE layers another number of times than once in a forward pass")
        self._size += len(forward.rows) * self._values
        if len(self._passes) == BLOCK_PASSES or self._size > BLOCK_VALUES:
            self._hand_over()

    def end_batch(self) -> None:
        """No pass of the batch is to come."""
        self._hand_over()
        self._background.run(self._write)

    def _hand_over(self) -> None:
        if self._passes:
            packed = self._collector.pack(len(self._passes))
            self._background.run(partial(self._gather, packed, self._passes))
            self._passes, self._size = [], 0

    def _gather(self, packed: Packed, passes: list[tuple[int, int, Forward]]) -> None:
        forwards = [forward for _, _, forward in passes]
        counts = [len(forward.rows) for forward in forwards]
        bases = np.repeat(np.array([base for _, base, _ in passes], dtype=np.int32), counts)
        columns: dict[str, I32 | U8] = {
            "step": np.repeat(np.array([step for step, _, _ in passes], dtype=np.int32), counts),
            "request": np.concatenate([forward.request for forward in forwards]) + bases,
            "position": np.concatenate([forward.position for forward in forwards]),
            "phase": np.repeat(np.array([forward.phase for forward in forwards], dtype=np.uint8), counts),
            "token_id": np.concatenate([forward.token_id for forward in forwards]),
        }
        self._rows.append((columns, packed.result([forward.rows for forward in forwards])))

    def _write(self) -> None:
        for columns, routing in self._rows:
            self._writer.append(
                **columns,
                experts=routing.experts,
                weights=routing.weights,
                logits=routing.logits,
                lookahead=routing.lookahead,
            )
            self._unflushed += len(routing.experts)
        self._rows.clear()
        # A boundary depends only on the rows since the last one, so that resuming makes the same shards.
        if self._unflushed >= self._shard_rows:
            self._writer.flush()
            self._unflushed = 0


def _record_batches(
    model: nn.Module,
    writes: type[Decoding] | None,
    encoded: list[list[int]],
    writer: TraceWriter,
    collector: RoutingCollector,
    options: RecordOptions,
    progress: Progress,
) -> None:
    start = writer.next_request
    if start > len(encoded) or (start % options.batch_size and start != len(encoded)):
        raise TraceError(f"cannot resume {writer.path}: it ends within a batch, after {start} requests")
    costs = [len(ids) if options.score else options.max_new_tokens for ids in encoded]
    total, step = sum(costs), writer.next_step
    stop = stop_tokens(model)
    with Background() as background:
        writing = _Writing(writer, collector, background, options.shard_rows)
        for base in range(start, len(encoded), options.batch_size):
            prompts = encoded[base : base + options.batch_size]
            done = sum(costs[:base])
            for forward, within in _passes(model, writes, prompts, base, stop, options):
                writing.add(step, base, forward)
                step += 1
                progress(done + within, total)
            writing.end_batch()


def _passes(
    model: nn.Module,
    writes: type[Decoding] | None,
    prompts: list[list[int]],
    base: int,
    stop: frozenset[int],
    options: RecordOptions,
) -> Iterator[tuple[Forward, int]]:
    """The passes of one batch, each with the tokens of the batch that are done after it."""
    if writes is None:
        done = 0
        whole = reads_at_once(model)
        for forward in (Encoding(model, prompts) if whole else Scoring(model, prompts, chunk=options.chunk)).passes():
            done += len(forward.rows)
            yield forward, done
        return
    batch = writes(
        model,
        prompts,
        max_new_tokens=options.max_new_tokens,
        stop=stop,
        samplers=None if options.drawn is None else options.drawn.samplers(base, len(prompts)),
        chunk=options.prefill_chunk,
    )
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
    vocabulary = len(model.get_input_embeddings().get_parameter("weight"))
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
