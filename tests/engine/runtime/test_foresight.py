"""Fitted predictors in the engine: a plan that names them decides as its replay does, in real passes and forced."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.decisions.spec import cache_spec  # noqa: E402  # needs torch
from engine.plan.plan import Plan, plan_from_dict  # noqa: E402
from engine.plan.tables import CachePlan  # noqa: E402
from engine.runtime import offload, offloaded  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS  # noqa: E402
from policies.events import HIT_PREFETCHED  # noqa: E402
from tests.engine.runtime.models import MakeModel  # noqa: E402
from tests.engine.runtime.test_decisions import assert_decided_alike  # noqa: E402
from tests.helpers.predictors import random_artefact  # noqa: E402
from tracekit.errors import PlanError, PolicyError  # noqa: E402
from tracekit.recorder.models import load_model  # noqa: E402
from tracekit.recorder.options import RecordOptions  # noqa: E402
from tracekit.recorder.prompts import Prompt  # noqa: E402
from tracekit.recorder.recorder import record  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

PROMPTS = [Prompt(id="a", prompt="def read(self, size=-1):\n    if"), Prompt(id="b", prompt="The names in the scope")]
NAME = "mixtral-mini"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(CHECKPOINTS / NAME, "float32", "cpu")


@pytest.fixture(scope="module")
def routing(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("plain") / "plain.trace"
    return Trace.open(record(*loaded, PROMPTS[:1], path, RecordOptions(max_new_tokens=4, lookahead=(1, 2))))


@pytest.fixture
def predictor(routing: Trace, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    yield (
        lambda name, distance=1: random_artefact(tmp_path / f"{name}-{distance}", name, routing, distance=distance).path
    )


def plan_of(prefetch: Path | None, eviction: Path | None = None, distance: int = 1) -> Plan:
    tables: dict[str, Any] = {"cache": {"capacity": "3/layer"}, "prefetch": {"predictor": "gate"}}
    if prefetch is not None:
        tables["prefetch"] = {"predictor": "learned", "artefact": str(prefetch), "count": 3, "distance": distance}
    if eviction is not None:
        tables["eviction"] = {"policy": "learned", "artefact": str(eviction)}
    return plan_from_dict(tables)


@pytest.mark.parametrize(
    ("prefetch", "eviction", "batch", "reset"),
    [
        ("mlp", "reuse-distance", 1, False),
        ("mlp", "reuse-distance", 1, True),
        # a padded batch: positions that are padding demand nothing and are not learned from
        ("recurrent", None, 2, False),
        ("token-popularity", "reuse-routing", 1, False),
        (None, "reuse-distance", 2, False),
    ],
)
def test_the_engine_decides_as_the_simulator(
    prefetch: str | None,
    eviction: str | None,
    batch: int,
    reset: bool,
    predictor: Callable[..., Path],
    tmp_path: Path,
) -> None:
    distance = 2 if prefetch == "mlp" else 1
    plan = plan_of(
        None if prefetch is None else predictor(prefetch, distance),
        None if eviction is None else predictor(eviction),
        distance,
    )
    if reset:
        plan = plan.replace(cache=CachePlan(capacity="3/layer", warm="reset"))
    model, tokenizer = load_model(CHECKPOINTS / NAME, "float32", "cpu")
    with offloaded(offload(model, plan)) as state:
        options = RecordOptions(max_new_tokens=8, lookahead=(1, 2), batch_size=batch)
        trace = Trace.open(record(model, tokenizer, PROMPTS, tmp_path / "engine.trace", options))
        log = state.log
        assert state.predicts
        state.reset()
        record(model, tokenizer, PROMPTS, tmp_path / "again.trace", options)
        assert np.array_equal(state.log.code, log.code)  # what the predictors remember is forgotten, too
    assert_decided_alike(log, trace, cache_spec(trace.manifest.experts_per_layer, trace.manifest.expert_bytes, plan))
    if prefetch is not None:
        assert (log.kind == HIT_PREFETCHED).sum() > 10


def test_forced_routing_hands_out_the_tokens_too(predictor: Callable[..., Path], routing: Trace) -> None:
    from experiments.validation.forced import validate_routing

    plan = plan_of(predictor("token-popularity"), predictor("reuse-distance"))
    found = validate_routing(CHECKPOINTS / NAME, plan, routing, steps=4)
    assert found.decisions.identical, found.decisions.first_difference


def test_another_model_is_refused_before_anything_moves(predictor: Callable[..., Path], make_model: MakeModel) -> None:
    path = predictor("linear")
    with pytest.raises(PolicyError, match="is for 8 MoE layers of 8 experts, not for 3 of 8"):
        offload(make_model("mixtral"), plan_of(path))
    model, _ = load_model(CHECKPOINTS / NAME, "float32", "cpu")
    model.config.rms_norm_eps *= 2
    with pytest.raises(PlanError, match="was fitted on mixtral-mini, the model is MixtralForCausalLM"):
        offload(model, plan_of(path))
