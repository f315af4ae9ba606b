"""What a measurement says without a model: intervals, floors, and which plans it knows the loss of. No torch."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import Plan
from experiments.quality.measurement import (
    ByDocument,
    Documents,
    Estimate,
    Measurement,
    compared,
    estimate,
    load_measurement,
    parse_loss,
)
from experiments.quality.quality_key import is_stored_only, quality_key
from experiments.quality.text import Document, read_documents
from tests.helpers.quality import measurement
from tracekit.errors import ImportFormatError, StudyError


def test_intervals_hold_the_loss_that_documents_were_drawn_with() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        plain = rng.lognormal(5, 1, 40)
        found = estimate(plain * rng.normal(0.02, 0.02, 40), plain, 0.95)
        assert found.low is not None and found.high is not None and found.low < found.value < found.high
        held += found.low <= 0.02 <= found.high
    assert held >= 184  # 92 %


def test_few_documents_have_no_interval() -> None:
    assert estimate(np.array([1.0, 2.0]), np.array([10.0, 10.0]), 0.95) == Estimate(0.15)
    assert estimate(np.zeros(2), np.ones(2), 0.95) == Estimate(0.0, 0.0, 0.0)
    # Forty documents, of which two differ, are two.
    parts = np.zeros(40)
    parts[:2] = 1
    assert estimate(parts, np.ones(40), 0.95).low is None


def test_perplexity_is_the_same_loss_in_other_words() -> None:
    rng = np.random.default_rng(6)
    tokens, plain = rng.integers(50, 200, 30), rng.uniform(100, 400, 30)
    more = plain * rng.normal(1.02, 0.01, 30)
    documents = Documents(
        id=[str(n) for n in range(30)], digest=[""] * 30, bytes=[9] * 30, tokens=tokens.tolist(), nats=plain.tolist()
    )
    by = ByDocument(nats=more.tolist(), kl_nats=[0.1] * 30, agreed=(tokens - 3).tolist())
    found = compared(documents, by, 0.95)
    assert found.loss.value == pytest.approx(more.sum() / plain.sum() - 1)
    assert found.perplexity_loss.value == pytest.approx(math.exp((more.sum() - plain.sum()) / tokens.sum()) - 1)
    low, high = found.perplexity_loss.low, found.perplexity_loss.high
    assert low is not None and high is not None and 0 < low < found.perplexity_loss.value < high
    assert found.agreement.high is not None and found.agreement.value < found.agreement.high <= 1


def test_which_plans_a_measurement_knows() -> None:
    known = (found := measurement({"hqq-4bit": 0.003})).losses()

    def loss(capacity: str = "4/layer", **tables: Any) -> Estimate | None:
        return known.of(Plan(capacity, **tables))

    assert loss(weights="hqq-4bit") == loss("9", eviction="lfu", weights="hqq-4bit") == found.plans[0].loss
    assert loss(weights={"experts": "hqq-4bit", "attention": "hqq-4bit"}) is None
    assert loss(weights="q4_k") is None and loss(weights="fp16") is None
    for word in (None, "bf16", "fp32"):  # as the model is stored, or more
        assert loss(weights=word) == Estimate(0.0, 0.0, 0.0)
        assert loss(weights=word, routing="drop-cold") is None


def test_plans_of_one_key_lose_alike() -> None:
    def key(capacity: str = "4/layer", **tables: Any) -> str:
        return quality_key(Plan(capacity, **tables))

    drop, fewer = {"policy": "drop-cold", "share": 0.3}, {"policy": "adaptive-k", "share": 0.9}
    assert key() == key("2/layer", eviction="lfu", compute_experts="fused", routing="none")
    assert len({key(), key(weights="hqq-4bit"), key(routing=drop), key(routing=fewer)}) == 4
    # What looks at the cache depends on all that decides it; what does not look, on none of it.
    assert len({key(routing=drop), key("2/layer", routing=drop), key(eviction="lfu", routing=drop)}) == 3
    assert key(routing=fewer) == key("2/layer", eviction="lfu", prefetch="gate", routing=fewer)
    assert key(routing=fewer) != key(routing={"policy": "adaptive-k", "share": 0.8})
    prune = {"policy": "prune", "keep": 4, "profile": "p.trace"}
    assert key(routing=prune) == key("2/layer", eviction="lfu", routing=prune)
    assert len({key(routing=prune | more) for more in ({}, {"keep": 5}, {"profile": "q.trace"})}) == 3
    assert key(routing=drop) == key(routing=drop, compute_experts="fused", serve={"context": 512})


def test_tiers_lose_by_themselves_whatever_their_high_format_loses() -> None:
    known = measurement({"hqq-4bit": 0.003}).losses()
    tiers = {"high": "hqq-4bit", "low": "hqq-2bit", "capacity": "2/layer"}
    plan = Plan("4/layer", precision=tiers)
    assert known.of(plan) is None and known.of(Plan("4/layer", weights="hqq-4bit")) is not None
    assert not is_stored_only(plan) and is_stored_only(Plan("4/layer", weights="hqq-4bit"))
    keys = {
        quality_key(Plan(capacity, precision=tiers | more, **others))
        for capacity, more, others in (
            ("4/layer", {}, {}),
            ("5/layer", {}, {}),
            ("4/layer", {"threshold": 0.1}, {}),
            ("4/layer", {"capacity": "3/layer"}, {}),
            ("4/layer", {}, {"prefetch": "gate"}),
        )
    }
    assert len(keys) == 5, "what is there says which copy serves"
    assert quality_key(plan) == quality_key(Plan("4/layer", precision=tiers, serve={"context": 512}))


@pytest.mark.parametrize(
    ("given", "share"), [("0.5 %", 0.005), ("3%", 0.03), (" 1.25 % ", 0.0125), (0.005, 0.005), (0, 0)]
)
def test_floors(given: Any, share: float) -> None:
    assert parse_loss(given) == pytest.approx(share)


@pytest.mark.parametrize("given", ["0.5", "-1 %", "many", 1.5, -0.1, True, "100 %"])
def test_what_is_no_floor(given: Any) -> None:
    with pytest.raises(StudyError, match=r'such as "0\.5 %"'):
        parse_loss(given)


def test_files_that_are_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="tracekit quality makes one"):
        load_measurement(tmp_path)
    place = tmp_path / "quality.json"
    for text in ("", "[]", '{"schema": 2}', measurement({}).to_json().replace('"quality"', '"other"')):
        place.write_text(text)
        with pytest.raises(StudyError, match="is not what tracekit quality writes"):
            load_measurement(place)
    found = measurement({"hqq-4bit": 0.1})
    place.write_text(found.to_json())
    again: Measurement = load_measurement(tmp_path)
    assert again == found


def test_documents_once_each(tmp_path: Path) -> None:
    lines, whole = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines.write_text('{"id": 1, "prompt": "one"}\n{"id": "x", "prompt": "two"}\n{"id": "y", "prompt": "one"}\n')
    whole.write_text("two")
    found, repeated = read_documents([lines, whole])
    assert found == [Document("1", "one"), Document("x", "two")]
    assert repeated == [("y", "1"), ("b.txt", "x")]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"id": 1, "messages": [{"role": "user", "content": "hi"}]}\n', "is a conversation"),
        ("a.jsonl", b"not json\n", "line 1"),
        ("a.txt", b"\xff\xfe", "no text in UTF-8"),
        ("a.txt", b"", "is empty"),
    ],
)
def test_what_is_no_text(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImportFormatError, match=says):
        read_documents([tmp_path / name])
    with pytest.raises(ImportFormatError, match="does not exist"):
        read_documents([tmp_path / "nowhere.txt"])
    (tmp_path / "one.txt").write_text("a")
    with pytest.raises(ImportFormatError, match="two documents are named"):
        read_documents([tmp_path / "one.txt", tmp_path / "one.txt"])
