"""On a device the host waits once a visit, for the gate's choices, and once a step; and no operation mixes devices."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.runtime.cuda.models import says, served
from tests.engine.runtime.models import CONFIGS, FAMILIES, PROMPT, plan_of

torch = pytest.importorskip("torch")
from tests.helpers.emulated_cuda.device import LATE, EmulatedCuda  # noqa: E402

GATE = {"predictor": "gate", "count": 2, "staging": 2}
HQQ = "hqq-4bit-g16"
FORMATS = ["fp32", "fp16", "bf16", "hqq-8bit-g16", HQQ, "hqq-3bit-g16", "hqq-2bit-g16", "hqq-2bit-g16-m16"]
READ, STEP, COPIED = "copy to the host", "the computing stream", "copy to the device"


def waits_of_a_step(device: EmulatedCuda, model: Any, **inputs: Any) -> list[str]:
    before = len(device.waits)
    with torch.inference_mode():
        model(**inputs, use_cache=True)
    return device.waits[before:]


def once_each(state: Any) -> list[str]:
    return [READ] * len(state.layers) + [STEP]


@pytest.mark.parametrize(("family", "weights"), [*((family, None) for family in FAMILIES), ("gpt_oss", HQQ)])
def test_the_host_waits_once_a_visit_and_once_a_step(family: str, weights: str | None) -> None:
    """A prompt, padded and not, and one token."""
    tables: dict[str, Any] = {"prefetch": GATE, "eviction": {"policy": "score"}}
    if weights is not None:
        pytest.importorskip("hqq")
        tables["weights"] = {"experts": weights}
    with EmulatedCuda(LATE) as device:
        model, state = served(plan_of("2/layer", **tables), family)
        ids = torch.tensor([PROMPT, PROMPT]).to("cuda:0")
        padded = torch.tensor([[0] * 3 + [1] * 7, [1] * 10]).to("cuda:0")
        with state:
            for inputs in (
                {"input_ids": ids},
                {"input_ids": ids, "attention_mask": padded},
                {"input_ids": ids[:1, :1]},
            ):
                # Making a cache, transformers brings the width of each sliding window to the device.
                window = [COPIED] * list(getattr(model.config, "layer_types", None) or ()).count("sliding_attention")
                assert sorted(waits_of_a_step(device, model, **inputs)) == sorted(once_each(state) + window)
            assert state.timings.step_tokens.tolist() == [20, 17, 1]


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_every_format(family: str, weights: str) -> None:
    """With biases and transposed, and without; attention in four bits beside quantised experts."""
    plain = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    tables = {"experts": weights}
    if weights not in plain:
        pytest.importorskip("hqq")
        tables["attention"] = HQQ
    with EmulatedCuda(LATE) as device:
        model, state = served(plan_of("2/layer", prefetch=GATE, weights=tables), family, plain.get(weights, "bfloat16"))
        ids = torch.tensor([PROMPT]).to("cuda:0")
        with state, torch.inference_mode():
            past = None
            for tokens in (ids, ids[:, :1], ids[:, 1:2]):
                before = len(device.waits)
                past = model(input_ids=tokens, past_key_values=past, use_cache=True).past_key_values
                window = [COPIED] * list(getattr(model.config, "layer_types", None) or ()).count("sliding_attention")
                own = window if tokens is ids else []
                assert sorted(device.waits[before:]) == sorted(once_each(state) + own)


def test_with_128_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = CONFIGS["qwen3_moe"]
    monkeypatch.setitem(CONFIGS, "many", (name, settings | {"num_experts": 128, "num_experts_per_tok": 8}))
    with EmulatedCuda(LATE) as device:
        model, state = served(plan_of("16/layer", prefetch=GATE | {"count": 8, "staging": 8}), "many")
        with state:
            ids = torch.tensor([PROMPT]).to("cuda:0")
            assert waits_of_a_step(device, model, input_ids=ids) == once_each(state)
            assert waits_of_a_step(device, model, input_ids=ids[:, :1]) == once_each(state)
            says(model)


class Reader:
    """In place of a fitted predictor: it reads token ids and foresees nothing."""

    works, reads = True, frozenset[str]()

    def __init__(self) -> None:
        self.read: list[list[int]] = []

    def visit(self, layer: int, ids: Any, weights: Any, lookahead: Any, tokens: Any, demand: Any) -> tuple[None, None]:
        self.read.append(tokens.tolist())
        return None, None

    def reset(self) -> None: ...


def test_token_ids_for_predictors_come_with_the_choices() -> None:
    with EmulatedCuda(LATE) as device:
        model, state = served(plan_of("2/layer", prefetch=GATE))
        with state:
            reader: Any = Reader()
            state._foresight = reader
            ids = torch.tensor([PROMPT]).to("cuda:0")
            for inputs in ({}, {"attention_mask": torch.ones_like(ids)}):
                assert waits_of_a_step(device, model, input_ids=ids, **inputs) == once_each(state)
            assert reader.read == [PROMPT] * 2 * len(state.layers)


CULPRITS: dict[str, Callable[[Any], object]] = {
    "item": lambda rows: rows.sum().item(),
    "tolist": lambda rows: rows[0].tolist(),
    "nonzero": lambda rows: rows.nonzero(),
    "mask": lambda rows: rows[rows > 0],
    "truth": lambda rows: bool(rows.any()),
    "masked assignment": lambda rows: rows.clone().__setitem__(rows > 0, 0.0),
    "to the host": lambda rows: rows.cpu(),
    "pageable copy": lambda rows: torch.ones(3).to(rows.device),
    "number made a tensor": lambda rows: torch.tensor(1.0, device=rows.device),
}


@pytest.mark.parametrize("culprit", CULPRITS)
def test_one_more_wait_is_seen(culprit: str) -> None:
    with EmulatedCuda(LATE) as device:
        model, state = served(plan_of("2/layer"))
        with state:
            ids = torch.tensor([PROMPT[:1]]).to("cuda:0")
            assert waits_of_a_step(device, model, input_ids=ids) == once_each(state)
            forward, calls = state._forward[1], []

            def once(weights: Any, rows: Any) -> Any:
                if not calls:
                    calls.append(CULPRITS[culprit](rows))
                return forward(weights, rows)

            state._forward[1] = once
            assert len(waits_of_a_step(device, model, input_ids=ids)) == len(once_each(state)) + 1
