"""Replays where there is no trace: on routing drawn from a prior, as local as the least, a likely and the most local
model known of that granularity (`tracekit.priors`). What comes of them is a prior, not the model's own figure.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.replay.result import Result
from engine.shapes import ModelShape, load_shape
from tracekit.batched import batched
from tracekit.caution import MARK
from tracekit.errors import PlanError, TraceError, TracekitError
from tracekit.priors import LEVELS, family_of, prior_traces
from tracekit.priors.family import Level
from tracekit.trace import Trace

WORD = "prior:"
TOKENS, PROMPT, REQUESTS = 1024, 128, 4
"""Generated tokens in all, a prompt's, and requests, where nothing else is asked for, in every command alike."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The routing that is drawn: for which model, and how much of it (as `tracekit.priors.prior_trace` takes it)."""

    model: str
    tokens: int = TOKENS
    prompt_tokens: int = PROMPT
    requests: int = REQUESTS
    seed: int = 0


def asked_for(
    model: str,
    *,
    tokens: int | None = None,
    prompt_tokens: int | None = None,
    requests: int | None = None,
    batch: int | None = None,
    seed: int | None = None,
) -> Asked:
    """The routing that is drawn; None: as usual. Where a `batch` decodes together, twice as many requests take turns.

    Raises PlanError where these do not get a generated token each.
    """
    several = requests or max(REQUESTS, 2 * (batch or 1))
    generated = tokens or TOKENS
    if generated < several:
        whose = "" if requests is not None else f" (twice the {batch} at once)"
        raise PlanError(
            f"a prior of {generated} generated tokens for {several} requests{whose}: each needs one; give --tokens "
            f"{several} or more, or fewer requests"
        )
    prompt = PROMPT if prompt_tokens is None else prompt_tokens
    return Asked(model=model, tokens=generated, requests=several, prompt_tokens=prompt, seed=seed or 0)


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Where figures of a prior come from; `mark` is not to be parted from them."""

    mark: str
    asked: Asked
    family: str
    notice: str
    known: list[str]


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure on routing as local as the least local known model's, a likely one's and the most local one's."""

    low: float | None
    likely: float | None
    high: float | None


class PriorResult(msgspec.Struct, frozen=True, kw_only=True):
    """What replays on the three say: the figures side by side, then each result whole."""

    prior: About
    decode_hit_ratio: Interval
    tokens_per_second: Interval
    ttft_ms: Interval
    results: dict[Level, Result]


def model_of(routing: object) -> str | None:
    """The model that `prior:MODEL` names; None where a trace is named. Raises TraceError for `prior:` alone."""
    text = str(routing)
    if not text.startswith(WORD):
        return None
    if text == WORD:
        raise TraceError("prior: of which model? give one as --model-shape takes it, such as prior:mixtral-8x7b")
    return text.removeprefix(WORD)


def about(asked: Asked, shape: ModelShape) -> About:
    """What is to be said of a prior for a model of that shape."""
    family = family_of(shape.experts, shape.top_k)
    notice = family.notice(shape.experts, shape.top_k)
    return About(mark=MARK, asked=asked, family=family.name, notice=notice, known=list(family.models()))


@contextmanager
def drawn(
    asked: Asked, shape: ModelShape, progress: Callable[[int], object] | None = None
) -> Iterator[dict[Level, Trace]]:
    """Traces of the three localities for a model of that shape, gone afterwards: no message names them."""
    with tempfile.TemporaryDirectory() as folder, _named(f"{WORD}{asked.model}", folder):
        yield prior_traces(
            [shape.experts] * len(shape.moe_layers),
            shape.top_k,
            tokens=asked.tokens,
            prompt_tokens=asked.prompt_tokens,
            requests=asked.requests,
            seed=asked.seed,
            folder=Path(folder),
            name=shape.name,
            progress=progress or (lambda tokens: None),
        )


@contextmanager
def _named(prior: str, folder: str) -> Iterator[None]:
    """Errors about a trace in the folder as of the prior."""
    try:
        yield
    except TracekitError as error:
        text = re.sub(rf"{re.escape(folder)}[/\\]\w+\.trace", lambda found: prior, str(error))
        if text == str(error):
            raise
        raise type(error)(text) from None


def replay_prior(
    asked: Asked,
    plan: Plan,
    hardware: HardwareProfile | str | None = None,
    *,
    batch: int | None = None,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> PriorResult:
    """Replay `plan` on the three traces of a prior, at the sizes of the model that `asked` names.

    `batch`: as if so many requests were decoded together; `options` go to `replay`. Raises what a replay raises, and
    TraceError for routing that cannot be drawn.
    """
    shape = load_shape(asked.model)
    said = about(asked, shape)
    results: dict[Level, Result] = {}
    with drawn(asked, shape, progress) as traces:
        for level, trace in traces.items():
            routed = trace if batch is None else batched(trace, batch)
            found = replay(routed, plan, hardware, model_shape=shape, **options)
            results[level] = from_prior(found, said, level)
    times = {level: result.time for level, result in results.items()}
    return PriorResult(
        prior=said,
        decode_hit_ratio=interval({level: result.phases.decode.hit_ratio for level, result in results.items()}),
        tokens_per_second=interval({level: time.tokens_per_second if time else None for level, time in times.items()}),
        ttft_ms=interval({level: time.ttft_ms if time else None for level, time in times.items()}),
        results=results,
    )


def from_prior(result: Result, said: About, level: Level) -> Result:
    """A result whose provenance says that its routing was drawn, in place of a path that is gone."""
    prior = msgspec.to_builtins(said) | {"level": level}
    provenance = result.provenance | {"trace": f"{WORD}{said.asked.model}", "prior": prior}
    return msgspec.structs.replace(result, provenance=provenance)


def interval(values: Mapping[Level, float | None]) -> Interval:
    """Figures by level as an interval."""
    return Interval(**{level: values[level] for level in LEVELS})
