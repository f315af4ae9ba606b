"""Every family on the experts seam, offloaded: the un-offloaded model's output bit for bit, the simulator's decisions.

At minimal, half and full capacity; a request alone, four at once, a prompt in chunks. Policies and prefetchers are
dealt out over the families, so that each meets several; and each of them meets Mixtral.
"""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from engine.plan.plan import plan_from_dict
from policies.registry import EVICTION, PREFETCH, eviction_policy, prefetcher
from tracekit.trace import Trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from engine.runtime import offload, offloaded  # noqa: E402  # needs torch
from tests.engine.runtime.test_decisions import assert_decided_alike, record  # noqa: E402
from tests.tracekit.recorder.exactness import documented  # noqa: E402
from tests.tracekit.recorder.families import build  # noqa: E402
from tracekit.recorder.encoding import continues  # noqa: E402
from tracekit.recorder.generation import Scoring, default_chunk  # noqa: E402
from tracekit.recorder.seam import seam_names, text_decoder  # noqa: E402

PROMPT = [5, 6, 7, 8, 20, 9, 10, 3, 7, 41, 11, 12, 30]
CAPACITIES = ("1/layer", "50%/layer", "100%/layer")  # of experts; the first leaves most to staging buffers
READERS = {"DiffusionGemmaForBlockDiffusion", "OpenAIPrivacyFilterModel"}  # write no token after another
FITTED = {"learned", "learned-adaptive"}  # need a file fitted on this model's routing: their own tests run them
EVICTIONS = [name for name in sorted(EVICTION) if not eviction_policy(name).bound and name not in FITTED]
PREFETCHERS = [name for name in sorted(PREFETCH) if not prefetcher(name).bound and name not in FITTED]
# With the prefetcher that others' tests compile them for: compiling takes longer than all else here.
PAIRS = [(name, "gate") for name in EVICTIONS] + [("lru", name) for name in PREFETCHERS]


class Run:
    """What a model answers: the logits of every pass of a request alone, of four, and of a prompt in chunks."""

    def __init__(self, model: Any) -> None:
        self.outputs: list[Any] = []
        self.tokens: list[list[int]] = []
        hook = model.register_forward_hook(lambda _, __, output: self.outputs.append(_numbers(output)))
        if type(model).__name__ in READERS:
            list(_reading(model))
        else:
            for prompts in ([PROMPT], [PROMPT[i : i + 8] for i in range(4)]):
                batch = continues(model)(model, prompts, max_new_tokens=4, stop=())
                list(batch.passes())
                self.tokens += batch.generated
            if default_chunk(model) is not None:  # transformers computes some families wrongly in chunks
                list(Scoring(model, [PROMPT], chunk=5).passes())
        hook.remove()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.tokens == other.tokens and all(map(torch.equal, *both(self, other)))

    __hash__ = None  # type: ignore[assignment]


def both(one: Run, other: Run) -> tuple[list[Any], list[Any]]:
    assert len(one.outputs) == len(other.outputs) > 0
    return one.outputs, other.outputs


def _numbers(output: Any) -> Any:
    logits = getattr(output, "logits", None)
    return (output[0] if logits is None else logits).clone()


def _reading(model: Any) -> Iterator[None]:
    for prompts in ([PROMPT], [PROMPT[i : i + 8] for i in range(4)]):
        torch.manual_seed(0)  # a model that writes in blocks begins with noise
        with torch.inference_mode():
            model(input_ids=torch.tensor(prompts))
        yield


def recorded(model: Any, path: Path) -> tuple[Run, Trace]:
    """What a model answers, and its routing."""
    answered: list[Run] = []
    trace = record(model, path, lambda: answered.append(Run(model)), distances=(1,))
    return answered[0], trace


def fresh(package: str, types: list[str]) -> Any:
    model: Any = build(package, types)
    model.config.eos_token_id = -1  # nobody stops early
    if hasattr(model, "generation_config"):
        model.generation_config.eos_token_id = -1
    model.set_experts_implementation("eager")
    return model


def plan_of(capacity: str, eviction: str, prefetch: str, profile: Path) -> Any:
    tables: dict[str, Any] = {"cache": {"capacity": capacity}, "prefetch": {"predictor": prefetch, "staging": 3}}
    tables["eviction"] = {"policy": eviction}
    if eviction_policy(eviction).needs_profile:
        tables["eviction"]["profile"] = str(profile)
    return plan_from_dict(tables)


def check(model: Any, plan: Any, expected: Run, trace: Trace) -> None:
    offload(model, plan)
    with offloaded(model) as state:
        assert Run(model) == expected
        assert_decided_alike(state.log, trace, state.spec)


@pytest.mark.parametrize(
    ("package", "turn"),
    [(package, turn) for turn, package in enumerate(sorted(documented()))],
    ids=sorted(documented()),
)
def test_a_family_answers_and_decides_alike(
    package: str, turn: int, found: dict[str, list[str]], tmp_path: Path
) -> None:
    if package not in found:
        pytest.skip(f"transformers {transformers.__version__} has no {package}")
    try:
        model = fresh(package, found[package])
    except LookupError as error:
        pytest.skip(f"{package}: {error}")
    if not seam_names(text_decoder(model)[1]):
        pytest.skip(f"{package} computes its experts without the seam: it is recorded, and cannot be offloaded")
    expected, trace = recorded(model, tmp_path / "t.trace")
    pairs = cycle(PAIRS)
    for _ in range(3 * turn):
        next(pairs)
    for capacity in CAPACITIES:
        eviction, prefetch = next(pairs)
        if trace.layers < 2:
            prefetch = "none"
        check(fresh(package, found[package]), plan_of(capacity, eviction, prefetch, trace.path), expected, trace)


@pytest.mark.parametrize(("eviction", "prefetch"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_policy_and_prefetcher_on_mixtral(
    eviction: str, prefetch: str, found: dict[str, list[str]], tmp_path: Path
) -> None:
    expected, trace = recorded(fresh("mixtral", found["mixtral"]), tmp_path / "t.trace")
    for capacity in CAPACITIES:
        model = fresh("mixtral", found["mixtral"])
        check(model, plan_of(capacity, eviction, prefetch, trace.path), expected, trace)
