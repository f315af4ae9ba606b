"""Quality in the engine against plain transformers; resuming; plans that alter nothing; one model at a time."""

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("hqq.core.quantize")

from engine.plan.plan import Plan  # noqa: E402
from engine.plan.tables import WeightsPlan  # noqa: E402
from engine.runtime import offload, offloaded  # noqa: E402
from engine.runtime.storage.rounding import rounded  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from experiments.demo.stdlib_text import prompts  # noqa: E402
from experiments.quality import kept_logits, scores, work  # noqa: E402
from experiments.quality.measure import measure  # noqa: E402
from experiments.quality.measurement import Measurement, load_measurement  # noqa: E402
from experiments.quality.records import RECORDS  # noqa: E402
from experiments.quality.text import Document, encode  # noqa: E402
from experiments.quality.work import Options  # noqa: E402
from tests.helpers.quality import small_model  # noqa: E402
from tests.helpers.traces import make_trace  # noqa: E402
from tracekit.errors import CapacityError, ModelError, PlanError, StudyError  # noqa: E402
from tracekit.recorder.models import load_tokenizer  # noqa: E402
from tracekit.rows import PREFILL  # noqa: E402

TEXTS = [Document(str(one["id"]), one["prompt"]) for one in prompts(6, seed=3)]
PLANS = {
    "plain": Plan("2/layer", eviction="lfu", prefetch="gate"),
    "four": Plan("3/layer", weights="hqq-4bit"),
    "two": Plan("25%", weights={"experts": "hqq-2bit-g16", "attention": "hqq-4bit"}),
}
WAY = Options(dtype="float32", device="cpu", window=48, chunk=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurement, Path]:
    folder = tmp_path_factory.mktemp("quality") / "whole"
    return measure(model, TEXTS, PLANS, folder, WAY), folder


def log_probabilities(folder: Path, weights: WeightsPlan, text: str) -> tuple[Any, Any]:
    """The slow way: plain transformers over rounded weights, a window at a time and without a cache. [tokens, words]"""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager", local_files_only=True
    )
    model = rounded(model.eval(), weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    found = []
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, WAY.window or 0):
            part = torch.tensor([ids[start : min(start + (WAY.window or 0), len(ids) - 1)]])
            found.append(torch.log_softmax(model(part, use_cache=False).logits[0].double(), -1))
    return torch.cat(found).numpy(), np.array(ids[1:])


def test_the_figures_are_those_of_plain_transformers(model: Path, measured: tuple[Measurement, Path]) -> None:
    found, _ = measured
    of_model = {None: WeightsPlan(), **{name: plan.weights for name, plan in PLANS.items()}}
    read = TEXTS[:2]
    known = {name: [log_probabilities(model, own, one.text) for one in read] for name, own in of_model.items()}
    size = [len(one.text.encode()) for one in read]
    assert found.documents.bytes[:2] == size
    for place in range(2):
        plain, targets = known[None][place]
        assert found.documents.tokens[place] == len(targets)
        every = np.arange(len(targets))
        assert found.documents.nats[place] == pytest.approx(-plain[every, targets].sum(), rel=1e-6)
        for one in found.plans:
            own, _ = known[one.name][place]
            assert one.by_document.nats[place] == pytest.approx(-own[every, targets].sum(), rel=1e-6)
            divergence = (np.exp(plain) * (plain - own)).sum()
            assert one.by_document.kl_nats[place] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
            agreed = int((plain.argmax(-1) == own.argmax(-1)).sum())
            assert abs(one.by_document.agreed[place] - agreed) <= 1  # passes of 20 tokens round otherwise


def test_sums_over_documents(measured: tuple[Measurement, Path]) -> None:
    found, folder = measured
    tokens, size = sum(found.documents.tokens), sum(found.documents.bytes)
    for one in found.plans:
        nats = sum(one.by_document.nats)
        assert one.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)
        assert one.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-12)
        assert one.loss.value == pytest.approx(one.bits_per_byte / found.unaltered.bits_per_byte - 1, abs=1e-12)
        assert one.perplexity_loss.value == pytest.approx(one.perplexity / found.unaltered.perplexity - 1, abs=1e-12)
        assert one.agreement.value == pytest.approx(sum(one.by_document.agreed) / tokens)
    assert 0 < found.plans[1].kl_divergence.value < found.plans[2].kl_divergence.value
    assert 0.1 < found.plans[2].agreement.value < found.plans[1].agreement.value < 1
    assert load_measurement(folder) == load_measurement(folder / "quality.json") == found
    assert sorted(path.name for path in folder.iterdir()) == [RECORDS, "quality.json"]


def test_a_plan_that_alters_nothing_loses_nothing(measured: tuple[Measurement, Path]) -> None:
    found, _ = measured
    plain = found.plans[0]
    assert plain.by_document.nats == found.documents.nats
    assert (plain.loss.value, plain.loss.low, plain.loss.high) == (0, 0, 0)
    assert plain.perplexity_loss.value == plain.kl_divergence.value == 0 and set(plain.by_document.kl_nats) == {0}
    assert plain.agreement.value == plain.agreement.low == 1 and plain.by_document.agreed == found.documents.tokens


def test_resumed_is_uninterrupted(model: Path, measured: tuple[Measurement, Path], tmp_path: Path) -> None:
    """Cut at any line, and within one; plans that come later add to what is there."""
    _, whole = measured
    lines = (whole / RECORDS).read_bytes().splitlines(keepends=True)
    assert len(lines) == len(TEXTS) * (1 + len(PLANS))
    for number, cut in enumerate((b"".join(lines[:8]), b"".join(lines[:20]) + lines[20][:30])):
        folder = tmp_path / str(number)
        (folder / "logits").mkdir(parents=True)
        (folder / "logits" / "left").write_bytes(b"of a killed run")
        (folder / RECORDS).write_bytes(cut)
        told: list[tuple[int, int]] = []
        measure(model, TEXTS, PLANS, folder, WAY, progress=lambda *now, told=told: told.append(now))
        assert (folder / "quality.json").read_bytes() == (whole / "quality.json").read_bytes()
        assert (folder / RECORDS).read_bytes() == (whole / RECORDS).read_bytes()
        assert told[-1][0] == told[-1][1] and told == sorted(told)
    # Nothing is read again where nothing is missing.
    (folder / "quality.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "offload", None)
        measure(model, TEXTS, PLANS, folder, WAY)
    assert (folder / "quality.json").read_bytes() == (whole / "quality.json").read_bytes()


def test_groups_and_pieces_change_no_bit(
    model: Path, measured: tuple[Measurement, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little disk: documents in groups, the models loaded for each; and never two of them in memory."""
    _, whole = measured
    living: list[weakref.ref[Any]] = []
    load = work.offload

    def counted(*given: Any, **options: Any) -> Any:
        gc.collect()
        assert not any(one() is not None for one in living)
        loaded = load(*given, **options)
        living.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(work, "offload", counted)
    monkeypatch.setattr(scores, "PIECE_BYTES", 5 * 8 * 2048)
    known, few = load_measurement(whole), TEXTS[:4]
    most = 2 * max(known.documents.tokens) * 2048 * kept_logits.NUMBER_BYTES
    way = Options(dtype="float32", device="cpu", window=48, chunk=20, scratch=most)
    found = measure(model, few, {"four": PLANS["four"]}, tmp_path / "q", way)
    assert len(living) >= 4 and len(living) % 2 == 0
    assert found.documents.nats == known.documents.nats[:4]
    ours, theirs = found.plans[0].by_document, known.plans[1].by_document
    assert (ours.nats, ours.kl_nats, ours.agreed) == (theirs.nats[:4], theirs.kl_nats[:4], theirs.agreed[:4])


def test_what_cannot_be_measured_is_said_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "offload", None)
    with pytest.raises(PlanError, match="multiple"):
        measure(CHECKPOINTS / NAMES[1], TEXTS, {"a": Plan("2/layer", weights="hqq-2bit")}, tmp_path / "q", WAY)
    with pytest.raises(CapacityError):
        measure(model, TEXTS, {"a": Plan("9/layer")}, tmp_path / "q", WAY)
    with pytest.raises(PlanError, match="who computes"):
        measure(model, TEXTS, {"a": Plan("2/layer", miss="auto")}, tmp_path / "q", WAY)
    with pytest.raises(PlanError, match="belady"):
        measure(model, TEXTS, {"a": Plan("2/layer", eviction="belady")}, tmp_path / "q", WAY)
    with pytest.raises(StudyError, match="--scratch"):
        measure(model, TEXTS, {}, tmp_path / "q", Options(device="cpu", scratch=1000))
    with pytest.raises(ModelError, match="no model at"):
        measure("/nowhere", TEXTS, {}, tmp_path / "q", WAY)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="holds no measurement"):
        measure(model, TEXTS, {}, other, WAY)


def test_figures_that_come_out_otherwise_are_not_mixed(
    model: Path, measured: tuple[Measurement, Path], tmp_path: Path
) -> None:
    """The unaltered model is read again for what is missing; on a machine that rounds otherwise that is an error."""
    _, whole = measured
    lines = [json.loads(line) for line in (whole / RECORDS).read_text().splitlines()[:7]]
    lines[0]["nats"] += 1e-9
    (tmp_path / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(StudyError, match="came out otherwise"):
        measure(model, TEXTS, {"four": PLANS["four"]}, tmp_path, WAY)


def test_damaged_weights_are_no_figure() -> None:
    score = scores.Score()
    with pytest.raises(ModelError, match="not finite"):
        score.add(torch.tensor([[0.0, float("nan")]]), np.array([0]))
    ruled_out = torch.tensor([[0.0, -math.inf]])
    score.add(ruled_out, np.array([0]), ruled_out)
    assert score.kl_nats == 0 and score.agreed == 1


def test_a_pass_is_as_long_as_its_logits_are_small(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**way: Any) -> tuple[int, int]:
        found = work.Work(model, {}, Options(device="cpu", **way), print)
        return found.window, found.chunk

    assert chosen() == (128, 128)  # the model's positions
    assert chosen(window=32, chunk=50) == (32, 32)
    monkeypatch.setattr(work, "PASS_BYTES", 10 * 2048 * 4)
    assert chosen() == (128, 10) and chosen(chunk=1) == (128, 1)


def test_a_plan_with_routing_is_measured_as_its_engine_says_it(model: Path, tmp_path: Path) -> None:
    """Teacher-forced, with its cache: the logits are those of the offloaded model read by hand."""
    prior, none = {"policy": "cache-prior", "strength": 0.5}, {"policy": "cache-prior", "strength": 0.0}
    plans = {"altered": Plan("1/layer", routing=prior), "same": Plan("1/layer", routing=none)}
    found = measure(model, TEXTS[:2], plans, tmp_path / "q", WAY)
    altered, same = found.plans
    assert same.by_document.nats == found.documents.nats and same.loss.value == 0
    known = found.losses()
    assert known.of(plans["altered"]) == altered.loss and altered.kl_divergence.value > 0
    assert known.of(Plan("2/layer", routing=prior)) is None and known.of(Plan("2/layer")) is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    text = TEXTS[0].text
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    nats, loaded = 0.0, offload(model, plans["altered"], dtype="float32", device="cpu")
    with offloaded(loaded) as state, torch.inference_mode():
        for start in range(0, len(ids) - 1, 48):
            part, past = ids[start : start + 49], None
            for chunk in range(0, len(part) - 1, 20):
                given = part[chunk : min(chunk + 20, len(part) - 1)]
                output = loaded(input_ids=torch.tensor([given]), past_key_values=past, use_cache=True)
                past = output.past_key_values
                wanted = torch.tensor(part[chunk + 1 : chunk + 1 + len(given)])
                nats += float(torch.nn.functional.cross_entropy(output.logits[0].double(), wanted, reduction="sum"))
        assert state.altered is not None and state.altered.replaced > 0
    assert altered.by_document.nats[0] == pytest.approx(nats, rel=1e-6)


def test_tiers_lie_between_their_formats(model: Path, measured: tuple[Measurement, Path], tmp_path: Path) -> None:
    both = {"high": "hqq-4bit", "low": "hqq-2bit-g16", "capacity": "2/layer", "threshold": 0.45}
    (found,) = measure(model, TEXTS[:1], {"both": Plan("2/layer", precision=both)}, tmp_path / "q", WAY).plans
    high, low = (measured[0].plans[place].by_document.kl_nats[0] for place in (1, 2))
    assert 0 < high < found.by_document.kl_nats[0] < low
    assert found.plan["precision"]["threshold"] == 0.45


def test_a_profile_counts_by_what_it_holds_and_not_for_its_own_texts(model: Path, tmp_path: Path) -> None:
    texts = [Document(one.id, one.text[:90]) for one in TEXTS[:2]]
    counts = tmp_path / "counts.json"
    plan = Plan("2/layer", routing={"policy": "prune", "keep": 2, "profile": str(counts)})
    losses = []
    for given in ([[4, 3, 2, 1]] * 2, [[1, 2, 3, 4]] * 2):
        counts.write_text(json.dumps({"logical_count": given}))
        losses.append(measure(model, texts, {"a": plan}, tmp_path / "same folder", WAY).plans[0].loss.value)
    assert losses[0] != losses[1]
    tokens, _ = encode(texts, load_tokenizer(model))
    experts = np.tile(np.array([2, 0]), (tokens.count, 2, 1))
    trace = make_trace(tmp_path / "p.trace", experts, num_experts=4, step=0, phase=PREFILL, token_id=tokens.ids[1:])
    own = {"profile": str(trace.path)}
    for table in (
        {"routing": {"policy": "prune", "keep": 2, **own}},
        {"precision": {"low": "hqq-2bit", "capacity": "1/layer", "rule": "popular", **own}},
    ):
        with pytest.raises(PlanError, match=r"holds 1 of the 2 texts.* no evidence"):
            measure(model, texts, {"own": Plan("2/layer", **table)}, tmp_path / "own", WAY)
