"""Passing batches through a causal language model, one pass at a time, knowing what each row is."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracekit.arrays import I32, I64, Bools
from tracekit.errors import ModelError
from tracekit.recorder.layers import family, is_encoder_decoder
from tracekit.recorder.sampling import Sampler
from tracekit.rows import DECODE, PREFILL

UNDIVIDED = ("doge", "jamba", "unlimited_ocr")
"""Families that continue a text token by token only: fed several tokens behind a cache, transformers' code for them
takes what came before for absent, or for masked, without a word."""
PREFILL_CHUNK = 2048
"""Long enough that an expert copied for a chunk has work to do, short enough for what a layer holds."""
PADDING = 0  # any valid id does: padding is masked and never recorded


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One forward pass that was made: its real tokens, ordered by request and position.

    `request` indexes the batch, `position` counts the request's own tokens from 0, `token_id` is the input
    token; `rows` says where each is among the pass's rows, padding included, in (batch, time) order. All are
    [tokens].
    """

    phase: int
    request: I32
    position: I32
    token_id: I32
    rows: NDArray[np.intp]


def default_chunk(model: nn.Module) -> int | None:
    """Tokens of a prompt to read at a time where nothing else is said: None, all of them, where there is no choice."""
    return None if family(model) in UNDIVIDED or is_encoder_decoder(model) else PREFILL_CHUNK


class Cache(Protocol):
    """A model's key-value cache, as far as it is touched here. Some of transformers' lack the method."""

    def reorder_cache(self, beam_idx: Tensor) -> None: ...


class Batch:
    """A model, its key-value cache, and which requests still take part."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts or not all(prompts):
            raise ModelError("a batch needs at least one request, and each request at least one token")
        self.model = model
        self.prompts = [list(prompt) for prompt in prompts]
        # Weights that are elsewhere while they rest are on the meta device.
        self.device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self.cache: Cache | None = None
        parameters = signature(model.forward).parameters
        # Without it the vocabulary logits of every prompt token would be computed, and thrown away.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
        self._positions = takes_any or "position_ids" in parameters

    def _forward(self, ids: I64, mask: I64 | None, positions: I64) -> Tensor:
        """Feed ids [batch, time]; returns the last position's logits [batch, vocabulary]."""
        return self.fed(ids, mask, positions, **self._last_only)[:, -1]

    def fed(self, ids: I64, mask: I64 | None, positions: I64, **arguments: int | Tensor) -> Tensor:
        """Feed ids [batch, time] behind what was fed before; returns logits [batch, time, vocabulary], of as many
        positions as `arguments` of the model's own leave."""
        if self._positions:
            arguments["position_ids"] = torch.from_numpy(positions).to(self.device)
        with self.reporting(), torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=None if mask is None else torch.from_numpy(mask).to(self.device),
                past_key_values=self.cache,
                use_cache=True,
                **arguments,
            )
        self.cache = self.checked(getattr(output, "past_key_values", None))
        logits: Tensor = output.logits
        return logits

    def padded(self, live: I64, start: int, chunk: int) -> tuple[I64, Bools, I64]:
        """Tokens `start` to `start + chunk` of the prompts `live`, right-padded: ids, which are real, and positions.

        [live, time] each.
        """
        lengths = np.array([len(self.prompts[request]) for request in live])
        columns = np.arange(start, min(start + chunk, int(lengths.max())))
        real = columns < lengths[:, None]
        ids = np.full(real.shape, PADDING, dtype=np.int64)
        ids[real] = np.concatenate([self.prompts[request][start : start + chunk] for request in live])
        return ids, real, np.broadcast_to(columns, real.shape).copy()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn what a kernel cannot serve (these shapes, dtypes, this device) into one line."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            name = type(self.model).__name__
            raise ModelError(f"{name} failed in a forward pass: {str(error)[:300]}") from error

    def checked(self, cache: Cache | None) -> Cache:
        """A cache that a pass returned. ModelError when there is none."""
        if cache is None:
            raise ModelError(
                f"{type(self.model).__name__} returned no key-value cache: it cannot be decoded step by step"
            )
        return cache

    def check_chunks(self, chunk: int) -> None:
        """Raise ModelError where prompts of this batch are longer than a chunk, and the model cannot take chunks."""
        name, longest = family(self.model), max(map(len, self.prompts))
        if name in UNDIVIDED and longest > chunk:
            raise ModelError(
                f"transformers does not compute {name} models in chunks of a prompt: give a chunk of at least "
                f"{longest} tokens, the longest text"
            )

    def keep(self, live: Sequence[int]) -> None:
        """Drop all but the given batch rows from the cache."""
        if self.cache is None or not hasattr(self.cache, "reorder_cache"):
            raise ModelError(
                f"{type(self.model).__name__}'s cache cannot drop finished requests: use a batch size of 1"
            )
        with torch.inference_mode():
            self.cache.reorder_cache(torch.as_tensor(live, device=self.device))


class Decoding(Batch):
    """A batch of prompts, left-padded, being continued: one prefill pass, or one per `chunk` tokens, then a pass per
    new token.

    `generated` holds the new tokens of each request so far. A request stops at `max_new_tokens` or after a
    token of `stop`, which is kept; its last token is never fed, and it takes no part in later passes. Greedy
    unless `samplers` gives one per request.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Collection[int] = (),
        samplers: Sequence[Sampler] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, prompts)
        self.chunk = chunk
        if chunk is not None:
            self.check_chunks(chunk)
        self.generated: list[list[int]] = [[] for _ in self.prompts]
        self.max_new_tokens = max_new_tokens
        self._stop = frozenset(stop)
        self._samplers = samplers

    def is_finished(self, request: int) -> bool:
        """Whether a request of the batch has all its tokens."""
        tokens = self.generated[request]
        return len(tokens) >= self.max_new_tokens or bool(tokens and tokens[-1] in self._stop)

    def passes(self) -> Iterator[Forward]:
        """Make the passes one by one; each is yielded once made and its new tokens are in `generated`."""
        lengths = np.array([len(prompt) for prompt in self.prompts])
        width = int(lengths.max())
        # [batch, time]
        mask: I64 = (np.arange(width) >= width - lengths[:, None]).astype(np.int64)
        ids: I64 = np.full((len(lengths), width), PADDING, dtype=np.int64)
        ids[mask == 1] = np.concatenate(self.prompts)
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        live = np.arange(len(self.prompts))
        phase = PREFILL
        while len(live):
            count = ids.shape[1]
            for start in range(0, count, self.chunk or count):
                end = min(start + (self.chunk or count), count)
                fed, where = ids[:, start:end], positions[:, start:end]
                seen = mask[:, : mask.shape[1] - count + end]
                logits = self._forward(fed, None if seen.all() else seen, where)
                if end == count:
                    self.choose(live, logits)
                rows = np.flatnonzero(seen[:, start - end :])
                yield Forward(
                    phase,
                    np.repeat(live, end - start)[rows].astype(np.int32),
                    where.reshape(-1)[rows].astype(np.int32),
                    fed.reshape(-1)[rows].astype(np.int32),
                    rows,
                )
            staying = np.array([not self.is_finished(int(request)) for request in live])
            if not staying.all() and staying.any():
                self.keep(np.flatnonzero(staying).tolist())
            live, mask, positions = live[staying], mask[staying], positions[staying, -1:] + 1
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            ids = np.array([[self.generated[request][-1]] for request in live], dtype=np.int64)
            phase = DECODE

    def choose(self, live: NDArray[np.intp], logits: Tensor) -> None:
        """Append a new token to each of the requests `live`, from its logits [live, vocabulary]."""
        with torch.inference_mode():
            best = logits.argmax(-1)
            # One NaN makes a row's maximum NaN. Both answers reach the host in one synchronisation.
            tokens, maxima = torch.stack([best.double(), logits.gather(-1, best[:, None])[:, 0].double()]).tolist()
            if not np.isfinite(maxima).all():
                raise ModelError("the model's logits are not finite: its weights are damaged, or its dtype overflows")
            if self._samplers is not None:
                host = logits.float().cpu().numpy()
                tokens = [self._samplers[request].draw(row) for request, row in zip(live, host, strict=True)]
        for request, token in zip(live.tolist(), tokens, strict=True):
            self.generated[request].append(int(token))


class Scoring(Batch):
    """A batch of given texts, right-padded, routed as prefill in passes of `chunk` tokens of each; nothing is
    generated.

    Padding comes after a text's last token, where causal attention cannot see it, and a text that has ended
    takes no part in later passes.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], *, chunk: int) -> None:
        super().__init__(model, prompts)
        self.chunk = chunk
        self.check_chunks(chunk)

    def passes(self) -> Iterator[Forward]:
        """Make the passes one by one; each is yielded once made."""
        lengths = np.array([len(prompt) for prompt in self.prompts])
        live = np.arange(len(self.prompts))
        for start in range(0, int(lengths.max()), self.chunk):
            staying = lengths[live] > start
            if not staying.all():
                self.keep(np.flatnonzero(staying).tolist())
                live = live[staying]
            ids, real, positions = self.padded(live, start, self.chunk)
            self._forward(ids, None, positions)
            yield read_forward(live, ids, real, positions)


def read_forward(live: I64, ids: I64, real: Bools, positions: I64) -> Forward:
    """The pass in which the requests `live` [n] read the `real` ones of ids [n, time]."""
    owners = np.broadcast_to(live[:, None], real.shape)
    request, position, token = (column[real].astype(np.int32) for column in (owners, positions, ids))
    return Forward(PREFILL, request, position, token, np.flatnonzero(real))
