"""Text from a model: prompts batch by batch, what they become as it comes, and how fast it came."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from tracekit.recorder.encoding import continues
from tracekit.recorder.generation import default_chunk
from tracekit.recorder.prompts import Prompt
from tracekit.recorder.recorder import stop_tokens
from tracekit.recorder.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What one prompt became: the new text and its tokens."""

    id: str | int
    text: str
    token_ids: list[int]
    prompt_tokens: int


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """All outputs, and their time: until the first batch's first tokens, and tokens per second after a batch's first.

    `prefill_chunk`: tokens of each prompt that are read at a time.
    """

    outputs: list[Output]
    time_to_first_token_s: float
    tokens_per_second: float | None
    prefill_chunk: int | None


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 1,
    chunk: int | None = None,
    sampling: Sampling | None = None,
    write: Callable[[str], object] = lambda text: None,
) -> Generated:
    """Continue prompts, `batch_size` at a time; `encoded` are their token ids.

    `sampling` is how tokens are drawn; None: greedily. `chunk` is as `Decoding` takes it; None is `default_chunk`.
    `write` is given the text as it comes: of one prompt token by token, of a batch when all of it is done; each ends a
    line. Raises ModelError.
    """
    chunk = chunk or default_chunk(model)
    stop, kind = stop_tokens(model, tokenizer), continues(model)
    outputs: list[Output] = []
    first_s, later_s, later_tokens = 0.0, 0.0, 0
    for base in range(0, len(prompts), batch_size):
        asked, ids = prompts[base : base + batch_size], encoded[base : base + batch_size]
        drawn = None if sampling is None else sampling.samplers(base, len(ids))
        decoding = kind(model, ids, max_new_tokens=max_new_tokens, stop=stop, samplers=drawn, chunk=chunk)
        stream = _Stream(decoding.generated[0], tokenizer, write if len(asked) == 1 else lambda text: None)
        start, begun = time.perf_counter(), 0.0
        for _ in decoding.passes():
            if not begun and decoding.generated[0]:
                begun = time.perf_counter()
            stream.show()
        end = time.perf_counter()
        first_s = first_s or begun - start
        later_s += end - begun
        later_tokens += sum(len(tokens) - 1 for tokens in decoding.generated)
        stream.finish()
        for prompt, tokens, fed in zip(asked, decoding.generated, ids, strict=True):
            text = _text(tokenizer, tokens)
            if len(asked) > 1:
                write(text + "\n")
            outputs.append(Output(id=prompt.id, text=text, token_ids=tokens, prompt_tokens=len(fed)))
    speed = later_tokens / later_s if later_tokens else None
    return Generated(outputs=outputs, time_to_first_token_s=first_s, tokens_per_second=speed, prefill_chunk=chunk)


class _Stream:
    """Writes a text that grows token by token."""

    def __init__(self, tokens: list[int], tokenizer: "PreTrainedTokenizerBase", write: Callable[[str], object]) -> None:
        self._tokens, self._tokenizer, self._write = tokens, tokenizer, write
        self._shown = ""

    def show(self) -> None:
        # Decoded anew each time: a character may need several tokens.
        text = _text(self._tokenizer, self._tokens)
        if not text.endswith("\ufffd"):
            self._write(text[len(self._shown) :])
            self._shown = text

    def finish(self) -> None:
        self._write(_text(self._tokenizer, self._tokens)[len(self._shown) :] + "\n")


def _text(tokenizer: "PreTrainedTokenizerBase", tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
