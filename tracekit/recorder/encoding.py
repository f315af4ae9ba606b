"""Passes through an encoder, which sees a whole text at once, and through the decoder that continues from it."""

from collections.abc import Iterator
from inspect import signature
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracekit.errors import ModelError
from tracekit.recorder.generation import Batch, Decoding, Forward, read_forward
from tracekit.recorder.layers import encoder_of, is_encoder_decoder
from tracekit.rows import DECODE, PREFILL


class Read(Protocol):
    """What an encoder returns."""

    last_hidden_state: Tensor


class Encoding(Batch):
    """A batch of texts, right-padded, routed in a single pass; nothing is generated.

    Through the encoder of an encoder-decoder model, or through a model that only reads.
    """

    output: Read
    mask: Tensor  # [batch, time]

    def passes(self) -> Iterator[Forward]:
        """Make the pass; it is yielded once made."""
        live = np.arange(len(self.prompts))
        ids, real, positions = self.padded(live, 0, max(map(len, self.prompts)))
        self.mask = torch.from_numpy(real.astype(np.int64)).to(self.device)
        reader = encoder_of(self.model) or self.model
        with self.reporting(), torch.inference_mode():
            self.output = reader(input_ids=torch.from_numpy(ids).to(self.device), attention_mask=self.mask)
        yield read_forward(live, ids, real, positions)


class Translating(Decoding):
    """A batch of texts read by an encoder, then continued by its decoder: a pass of the encoder, then one of the
    decoder per new token.

    The positions of the decoder's tokens go on behind those of the text; its start token counts as prompt.
    """

    def check_chunks(self, chunk: int) -> None:
        raise ModelError(f"{type(self.model).__name__} reads a prompt at once: leave out the prefill chunk")

    def passes(self) -> Iterator[Forward]:
        """Make the passes one by one; each is yielded once made and its new tokens are in `generated`."""
        encoding = Encoding(self.model, self.prompts)
        yield from encoding.passes()
        read, mask = encoding.output, encoding.mask
        live = np.arange(len(self.prompts))
        positions = np.array([len(prompt) for prompt in self.prompts])
        ids: NDArray[np.int64] = np.full((len(live), 1), _start_token(self.model), dtype=np.int64)
        phase, forced = PREFILL, _stated(self.model, "forced_bos_token_id")
        while len(live):
            with self.reporting(), torch.inference_mode():
                output = self.model(
                    encoder_outputs=read,
                    attention_mask=mask,
                    decoder_input_ids=torch.from_numpy(ids).to(self.device),
                    past_key_values=self.cache,
                    use_cache=True,
                )
            self.cache = self.checked(output.past_key_values)
            self.choose(live, output.logits[:, -1])
            if forced is not None and phase == PREFILL:
                for tokens in self.generated:
                    tokens[-1] = forced
            yield Forward(
                phase,
                live.astype(np.int32),
                positions[live].astype(np.int32),
                ids[:, 0].astype(np.int32),
                np.arange(len(live)),
            )
            positions[live] += 1
            staying = np.array([not self.is_finished(int(request)) for request in live])
            if not staying.all() and staying.any():
                kept = torch.from_numpy(np.flatnonzero(staying)).to(self.device)
                self.keep(kept.tolist())
                read.last_hidden_state, mask = read.last_hidden_state[kept], mask[kept]
            live = live[staying]
            ids = np.array([[self.generated[request][-1]] for request in live], dtype=np.int64)
            phase = DECODE


def continues(model: nn.Module) -> type[Decoding]:
    """What continues a text with `model`. ModelError for a model that does not write token by token."""
    if is_encoder_decoder(model):
        return Translating
    can_generate = getattr(model, "can_generate", None)
    if callable(can_generate) and not can_generate():
        raise ModelError(f"{type(model).__name__} does not generate text: record it with --score")
    if "decoder_input_ids" in signature(model.forward).parameters:
        raise ModelError(f"{type(model).__name__} writes blocks, not token by token: it cannot be recorded")
    return Decoding


def reads_at_once(model: nn.Module) -> bool:
    """Whether a model sees a text as a whole, and not each token with those before it."""
    can_generate = getattr(model, "can_generate", None)
    return is_encoder_decoder(model) or (callable(can_generate) and not can_generate())


def _start_token(model: nn.Module) -> int:
    for name in ("decoder_start_token_id", "bos_token_id"):
        token = _stated(model, name)
        if token is not None:
            return token
    raise ModelError(f"{type(model).__name__} does not say with which token its decoder starts")


def _stated(model: nn.Module, name: str) -> int | None:
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        token = getattr(holder, name, None)
        if isinstance(token, int):
            return token
    return None
