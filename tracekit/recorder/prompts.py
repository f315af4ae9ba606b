"""Prompt files: JSON lines, each `{"id": ..., "prompt": ...}` or `{"id": ..., "messages": [...]}`."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tracekit.errors import ImportFormatError, TraceError, shortened
from tracekit.json_text import why_not_json
from tracekit.manifest import check_label
from tracekit.opening import open_given

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 16 << 20
MAX_PROMPTS = 10_000_000


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation: `role` as the model's chat template knows it, `content` plain text."""

    role: str
    content: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request: a unique `id`, and `prompt`, raw text, or `messages` for the model's chat template.

    `domain`: what kind of request it is, in the user's words (docs/placement.md).
    """

    id: str | int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    domain: str | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file of JSON lines, a pipe, or what is piped in (`-`), in order; blank lines are skipped.

    Raises ImportFormatError naming the file and line for whatever is not a prompt, and for a file without
    any.
    """
    path, too_large = Path(path), f"{path} is larger than {MAX_FILE_BYTES >> 30} GiB: split it"
    prompts: list[Prompt] = []
    lines_of: dict[str, int] = {}
    try:
        with open_given(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise ImportFormatError(too_large)
            read = 0  # a pipe does not say how much will come
            # A byte more than allowed, so that a longer line shows as such without being read.
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                read += len(line)
                if read > MAX_FILE_BYTES:
                    raise ImportFormatError(too_large)
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not text.strip():
                    continue
                prompt = _parse(text, f"{path}, line {number}")
                first = lines_of.setdefault(str(prompt.id), number)
                if first != number:
                    raise ImportFormatError(
                        f"{path}, line {number}: id {shortened(prompt.id)!r} is that of line {first}"
                    )
                if len(prompts) == MAX_PROMPTS:
                    raise ImportFormatError(f"{path} has more than {MAX_PROMPTS} prompts: split it")
                prompts.append(prompt)
    except FileNotFoundError:
        raise ImportFormatError(f"no prompts at {path}: the file does not exist") from None
    except OSError as error:
        raise ImportFormatError(f"prompts {path} cannot be read: {error.strerror or error}") from None
    if not prompts:
        raise ImportFormatError(f'{path} holds no prompts: it needs lines like {{"id": "a", "prompt": "Once"}}')
    return prompts


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """sha256 of what the prompts say, whatever the spacing or key order of their file, and their domains."""
    digest = hashlib.sha256()
    for prompt in prompts:
        said = {"id": prompt.id, "prompt": prompt.prompt, "messages": prompt.messages}
        digest.update(msgspec.json.encode(said, order="deterministic") + b"\n")
    return digest.hexdigest()


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", *, generating: bool = True
) -> list[list[int]]:
    """The token ids of each prompt, at least one each.

    Raw text gets the tokenizer's special tokens; messages get what the chat template says, with the opening
    of the model's turn when `generating`. ImportFormatError names the prompt that cannot be encoded.
    """
    encoded = []
    for prompt in prompts:
        where = f"prompt {shortened(prompt.id)!r}"
        try:
            if prompt.prompt is not None:
                ids = tokenizer(prompt.prompt, verbose=False)["input_ids"]
            else:
                text = _templated(prompt, tokenizer, generating)
                ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except ImportFormatError:
            raise
        except Exception as error:  # templates and tokenizers are foreign code and fail in any way
            raise ImportFormatError(f"{where} cannot be encoded: {error}") from None
        if len(ids) == 0:
            raise ImportFormatError(f"{where} encodes to no tokens at all")
        encoded.append([int(token) for token in ids])
    return encoded


def _templated(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", generating: bool) -> str:
    if not tokenizer.chat_template:
        raise ImportFormatError(
            f'prompt {shortened(prompt.id)!r} has "messages", but the model has no chat template: use "prompt"'
        )
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages or ()]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generating)
    assert isinstance(text, str)
    return text


def _parse(line: bytes, where: str) -> Prompt:
    if len(line) > MAX_LINE_BYTES:
        raise ImportFormatError(f"{where} is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        prompt = msgspec.json.decode(line, type=Prompt)
        # JSON can escape half a surrogate pair, which is no text.
        msgspec.json.encode(prompt)
    except msgspec.ValidationError as error:
        raise ImportFormatError(f"{where} is not a prompt: {error}") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ImportFormatError(f"{where} {why_not_json(line, error)}") from None
    if (prompt.prompt is None) == (prompt.messages is None):
        raise ImportFormatError(f'{where} needs either "prompt" or "messages"')
    if prompt.prompt == "" or prompt.messages == ():
        raise ImportFormatError(f"{where} is empty")
    try:
        check_label(prompt.domain or "")
    except TraceError as error:
        raise ImportFormatError(f"{where}: {error}") from None
    return prompt
