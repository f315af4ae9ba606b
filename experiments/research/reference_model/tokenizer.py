"""The tokenizer of the reference models: byte-level BPE, trained on the training text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from experiments.demo.stdlib_text import DOMAINS, Document, Domain, by_domain

VOCABULARY = 2048
CONTEXT = 512  # tokens; the longest text the models are trained on
END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PADDING_ID = 0, 1
CHARACTERS_PER_DOMAIN = 1_500_000  # as many of each, or code would own every merge


def train_tokenizer(documents: Sequence[Document]) -> PreTrainedTokenizerFast:
    """Fit `VOCABULARY` tokens on equal shares of the three domains; any text encodes and decodes exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_shares(documents), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def token_streams(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
) -> Mapping[Domain, npt.NDArray[np.uint16]]:
    """Each domain's documents as one stream of token ids, every document closed by the end-of-text token."""
    streams: dict[Domain, npt.NDArray[np.uint16]] = {}
    for domain, members in by_domain(documents).items():
        texts = [document.text for document in members]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        streams[domain] = np.asarray([i for ids in encoded for i in (*ids, END_OF_TEXT_ID)], dtype=np.uint16)
    return streams


def _shares(documents: Sequence[Document]) -> Iterator[str]:
    groups = by_domain(documents)
    for domain in DOMAINS:
        left = CHARACTERS_PER_DOMAIN
        total = sum(len(document.text) for document in groups[domain])
        for document in groups[domain]:
            # Every document gives its share: the alphabetically first ones do not stand for the domain.
            share = document.text[: len(document.text) * CHARACTERS_PER_DOMAIN // total + 1]
            if left > 0:
                yield share[:left]
            left -= len(share)
