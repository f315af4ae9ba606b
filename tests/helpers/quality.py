"""A small model to measure, and measurements of quality, made up, for tests of what reads them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engine.plan.plan import Plan
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.quality.measurement import (
    ByDocument,
    Documents,
    Measured,
    Measurement,
    Model,
    Text,
    Way,
    compared,
    predicted,
)


def small_model(folder: Path) -> Path:
    """A random Mixtral of two layers that reads with the reference models' tokenizer; returns `folder`."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        initializer_range=0.2,  # wide, so that tokens choose different experts and formats tell
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for path in (CHECKPOINTS / NAMES[0]).glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def measurement(losses: Mapping[str, float], documents: int = 12) -> Measurement:
    """A measurement of formats that lose so much, give or take, on made-up documents."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(80, 200, documents)
    nats = tokens * rng.uniform(1.5, 2.5, documents)
    texts = Documents(
        id=[f"d{number}" for number in range(documents)],
        digest=[f"{number:064x}" for number in range(documents)],
        bytes=(4 * tokens).tolist(),
        tokens=tokens.tolist(),
        nats=nats.tolist(),
    )
    plans = []
    for word, loss in losses.items():
        plan = Plan("2/layer", weights=word)
        by_document = ByDocument(
            nats=(nats * (1 + loss * rng.uniform(0.8, 1.2, documents))).tolist(),
            kl_nats=(tokens * loss).tolist(),
            agreed=(tokens - 1).tolist(),
        )
        figures, whole = compared(texts, by_document, 0.95), predicted(texts, by_document.nats)
        plans.append(
            Measured(
                name=word,
                plan=plan.to_dict(),
                weights=plan.weights,
                expert_bytes=1000,
                bits_per_parameter=4.0,
                bits_per_byte=whole.bits_per_byte,
                perplexity=whole.perplexity,
                loss=figures.loss,
                perplexity_loss=figures.perplexity_loss,
                agreement=figures.agreement,
                kl_divergence=figures.kl_divergence,
                by_document=by_document,
            )
        )
    return Measurement(
        kind="quality",
        model=Model(name="mini", digest="0" * 64, family="mixtral", stored="bf16", dtype="float32"),
        text=Text(
            digest="1" * 64, documents=documents, bytes=sum(texts.bytes), tokens=sum(texts.tokens), counted_once=[]
        ),
        reading=Way(window=512, chunk=512, device="cpu"),
        level=0.95,
        unaltered=predicted(texts, texts.nats),
        plans=plans,
        documents=texts,
        provenance={"moe_tracekit": "0"},
    )
