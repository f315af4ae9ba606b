"""The shipped reference models: they are really trained, they fit, and anyone can train them again."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import (
    DOMAINS,
    Document,
    Domain,
    by_domain,
    documents,
    prompts,
    split_of,
)
from experiments.research.reference_model import evaluate
from experiments.research.reference_model.architecture import build, configuration
from experiments.research.reference_model.batches import Streams, batch
from experiments.research.reference_model.evaluate import Reading, read, table
from experiments.research.reference_model.gate_use import LayerRouting, describe
from experiments.research.reference_model.ngram import ByteModel
from experiments.research.reference_model.tokenizer import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    PADDING_ID,
    VOCABULARY,
    load_tokenizer,
    token_streams,
)
from experiments.research.reference_model.train import Recipe, balance_loss, train

LARGEST_TOTAL = 15_500_000  # bytes of both checkpoint folders
SAMPLE_CHARACTERS = 600  # of each held-out document


@pytest.fixture(scope="module")
def training_text() -> list[Document]:
    return documents("train")


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    """The middle of every held-out document: a small fixed sample with all of their variety."""
    return [replace(d, text=d.text[len(d.text) // 2 :][:SAMPLE_CHARACTERS]) for d in documents("held-out")]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reading(name: str, sample: list[Document]) -> Mapping[Domain, Reading]:
    return read(CHECKPOINTS / name, sample)


@pytest.fixture(scope="module")
def layers(name: str, reading: Mapping[Domain, Reading]) -> list[LayerRouting]:
    experts = json.loads((CHECKPOINTS / name / "config.json").read_text())["num_local_experts"]
    return describe({domain: one.windows for domain, one in reading.items()}, experts)


# Text


def test_training_text_and_held_out_text_share_no_source(training_text: list[Document]) -> None:
    held_out = documents("held-out")
    assert not {d.path for d in training_text} & {d.path for d in held_out}
    assert all(split_of(document.path) == "train" for document in training_text)
    assert all(split_of(document.path) == "held-out" for document in held_out)


def test_text_is_the_same_each_time_and_covers_each_domain(training_text: list[Document]) -> None:
    held_out = documents("held-out")
    assert held_out == documents("held-out")
    for found in (training_text, held_out):
        assert len({(d.path, d.domain) for d in found}) == len(found)
        assert all(by_domain(found)[domain] for domain in DOMAINS)


def test_code_carries_no_docstring_and_prose_is_them(training_text: list[Document]) -> None:
    modules = {d.domain: d.text for d in training_text if d.path == "textwrap.py" or d.path == "shutil.py"}
    assert "def " in modules["code"]
    assert '"""' not in modules["code"]
    assert "def " not in modules["prose"]


def test_prompts_are_held_out_text_of_each_domain_in_turn() -> None:
    found = prompts(30, seed=1)
    assert [p["id"] for p in found[:4]] == ["prose-000", "code-000", "tables-000", "prose-001"]
    assert found[:7] == prompts(7, seed=1)
    assert found != prompts(30, seed=2)
    texts = {domain: [d.text for d in group] for domain, group in by_domain(documents("held-out")).items()}
    tokenizer = load_tokenizer(CHECKPOINTS / NAMES[0])
    for prompt in found:
        domain = next(domain for domain in DOMAINS if prompt["id"].startswith(domain))
        assert any(prompt["prompt"] in text for text in texts[domain])
    sizes = [len(tokenizer(prompt["prompt"])["input_ids"]) for prompt in found]
    assert 40 <= np.median(sizes) <= 120
    assert min(sizes) >= 10
    assert max(sizes) <= 200


# The shipped checkpoints


def test_checkpoints_load_offline_the_ordinary_way(name: str) -> None:
    folder = CHECKPOINTS / name
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.num_hidden_layers == 8
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END_OF_TEXT_ID, PADDING_ID)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (END_OF_TEXT_ID, PADDING_ID)
    assert model.generation_config.eos_token_id == END_OF_TEXT_ID
    text = f"def f(x):\n    return '\u00e9\U0001f40d'  # {string.printable}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer(END_OF_TEXT)["input_ids"] == [END_OF_TEXT_ID]
    ids = tokenizer("import os\n", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= ids.shape[1] + 4


def test_checkpoints_are_small_and_hold_no_pickle() -> None:
    files = [file for name in NAMES for file in (CHECKPOINTS / name).rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) <= LARGEST_TOTAL


def test_predicts_held_out_text_better_than_three_bytes_of_context_do(
    reading: Mapping[Domain, Reading], sample: list[Document], training_text: list[Document]
) -> None:
    baseline = ByteModel.fit([d.data for d in training_text])
    for domain, group in by_domain(sample).items():
        texts = [d.data for d in group]
        assert reading[domain].bytes == sum(map(len, texts))
        assert reading[domain].bits < baseline.bits(texts)


def test_every_expert_of_every_layer_works(layers: list[LayerRouting]) -> None:
    assert len(layers) == 8
    assert all(layer.unused_experts == 0 for layer in layers)
    assert all(layer.load_entropy > 0.8 for layer in layers)


def test_consecutive_tokens_share_more_experts_than_chance(layers: list[LayerRouting]) -> None:
    overlap = np.mean([layer.overlap for layer in layers])
    chance = np.mean([layer.chance_overlap for layer in layers])
    assert overlap > 1.1 * chance


def test_domains_use_experts_differently(layers: list[LayerRouting]) -> None:
    assert np.mean([layer.domain_distance for layer in layers]) > 0.05


def test_readme_shows_the_measured_table() -> None:
    assert table() in (Path(evaluate.__file__).parent / "README.md").read_text()


# Training


@pytest.fixture
def streams() -> Streams:
    rng = np.random.default_rng(0)
    return {domain: rng.integers(2, VOCABULARY, 500).astype(np.uint16) for domain in DOMAINS}


TINY = Recipe(steps=4, sequences=2, length=16, warmup=2)


def _trained(name: str, streams: Streams, state: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    model = build(configuration(name, layers=2, hidden=32), TINY.seed)
    train(model, streams, TINY, state, save_every=2, stop_after=stop_after)
    return model.state_dict()


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_seed_determines_the_weights(name: str, streams: Streams, tmp_path: Path) -> None:
    first = _trained(name, streams, tmp_path / "first.safetensors")
    assert _equal(first, _trained(name, streams, tmp_path / "second.safetensors"))
    assert not _equal(first, build(configuration(name, layers=2, hidden=32), TINY.seed).state_dict())


@pytest.mark.parametrize("stopped", [2, 3])
def test_a_stopped_run_goes_on_as_if_it_had_not(name: str, streams: Streams, tmp_path: Path, stopped: int) -> None:
    whole = _trained(name, streams, tmp_path / "whole.safetensors")
    _trained(name, streams, tmp_path / "parts.safetensors", stop_after=stopped)
    assert _equal(whole, _trained(name, streams, tmp_path / "parts.safetensors"))


def test_a_state_of_another_seed_is_refused(name: str, streams: Streams, tmp_path: Path) -> None:
    _trained(name, streams, tmp_path / "state.safetensors", stop_after=1)
    model = build(configuration(name, layers=2, hidden=32), seed=1)
    with pytest.raises(ValueError, match="has seed 0, not 1"):
        train(model, streams, replace(TINY, seed=1), tmp_path / "state.safetensors", save_every=2)


def test_batches_depend_on_seed_and_step_alone(streams: Streams) -> None:
    assert torch.equal(batch(streams, 0, 7, 4, 16), batch(streams, 0, 7, 4, 16))
    assert not torch.equal(batch(streams, 0, 7, 4, 16), batch(streams, 0, 8, 4, 16))
    assert not torch.equal(batch(streams, 0, 7, 4, 16), batch(streams, 1, 7, 4, 16))


def test_the_plateau_does_not_depend_on_the_length_of_the_run() -> None:
    short, long = Recipe(steps=1000), Recipe(steps=2000)
    assert [short.rate(step) for step in range(700)] == [long.rate(step) for step in range(700)]
    assert short.rate(999) == pytest.approx(short.learning_rate / 300)


def test_balance_loss_sees_a_layer_that_collapses() -> None:
    # Two layers, each using one of two experts only: together they look even, each alone is not.
    collapsed = (torch.tensor([[20.0, 0.0]] * 6), torch.tensor([[0.0, 20.0]] * 6))
    even = (torch.tensor([[20.0, 0.0], [0.0, 20.0]] * 3),) * 2
    assert balance_loss(collapsed, experts=2, top_k=1).item() == pytest.approx(4.0)
    assert balance_loss(even, experts=2, top_k=1).item() == pytest.approx(2.0)


# Measures


def test_byte_model_is_a_distribution_and_unigram_bits_are_counts() -> None:
    model = ByteModel.fit([b"abracadabra"])
    total = sum(2 ** (model.bits([b"abr"]) - model.bits([b"abr" + bytes([b])])) for b in range(256))
    assert total == pytest.approx(1.0)
    # Witten-Bell: 5 of 11 bytes are "a", 5 distinct bytes leave 5/16 to the uniform distribution.
    assert ByteModel.fit([b"abracadabra"], order=0).bits([b"a"]) == pytest.approx(-np.log2((5 + 5 / 256) / 16))


def test_each_text_starts_from_its_own_beginning() -> None:
    model = ByteModel.fit([b"abc", b"abd"])
    assert model.bits([b"abc", b"abd"]) == pytest.approx(model.bits([b"abc"]) + model.bits([b"abd"]))


def test_routing_of_a_hand_made_trace() -> None:
    # One layer, top-1 of 4 experts: prose stays on experts 0 and 1 in runs, code on 2 and 3.
    prose = np.repeat([0, 1], 50).reshape(-1, 1, 1)
    (layer,) = describe({"prose": [prose], "code": [prose + 2]}, experts=4)
    assert layer.load_entropy == pytest.approx(1.0)
    assert layer.max_over_mean_load == pytest.approx(1.0)
    assert layer.overlap == pytest.approx(98 / 99)  # a window's tokens change expert once
    assert layer.chance_overlap == pytest.approx(0.25, abs=0.1)
    assert layer.domain_distance == pytest.approx(1.0)
    (lopsided,) = describe({"prose": [prose], "code": [prose]}, experts=4)
    assert lopsided.unused_experts == 2
    assert lopsided.domain_distance == 0.0


def test_token_streams_close_every_document() -> None:
    tokenizer = load_tokenizer(CHECKPOINTS / NAMES[0])
    text = [Document("a", "prose", "one"), Document("b", "prose", "two"), Document("c", "code", "x")]
    streams = token_streams(tokenizer, text)
    assert tokenizer.decode(streams["prose"].tolist()) == f"one{END_OF_TEXT}two{END_OF_TEXT}"
    assert len(streams["tables"]) == 0
