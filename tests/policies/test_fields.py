"""Declared state and parameters of policies, and finding policies by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.eviction.base import EvictionPolicy
from policies.fields import Layout, parameter, per_expert, per_group, scalar
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import CapacityError, PolicyError, TracekitError

LAYOUT = Layout(3, 4, 2, 1, np.ones(12, np.int64), np.zeros(12, np.int64))


class Declared(EvictionPolicy):
    name = "declared"
    count = per_expert(np.int32, -1)
    hand = per_group(np.int64)
    once = scalar(np.float64, 0.5)
    k = parameter(2)
    decay = parameter(0.9)
    strict = parameter(False)
    share = parameter(0.5, low=0, high=1)
    rounds = parameter(3, low=1)
    few = parameter(3, high=9)


class Derived(Declared):
    extra = per_expert(np.uint8)


def test_state_is_what_was_declared() -> None:
    state = Declared.allocate(LAYOUT, {"k": 3})
    assert state.count.tolist() == [-1] * 12 and state.count.dtype == np.int32
    assert (len(state.hand), len(state.once)) == (2, 1)
    assert (state.k, state.decay, state.strict) == (3, 0.9, False)
    assert state.size is LAYOUT.size and state.last_use is LAYOUT.last_use


def test_a_derived_policy_has_the_fields_of_its_base() -> None:
    assert set(Derived.fields()) == {*Declared.fields(), "extra"}
    assert Derived.State is not Declared.State


def test_an_interpreted_policy_shares_its_arrays_with_the_state() -> None:
    state = Declared.allocate(LAYOUT)
    policy: Any = Declared.interpreted(state)
    policy.count[3] = 7
    assert state.count[3] == 7


@pytest.mark.parametrize(
    "parameters",
    [
        {"kk": 1},
        {"k": 1.5},
        {"k": True},
        {"k": "2"},
        {"k": float("inf")},
        {"k": float("nan")},
        {"k": 10**30},
        {"decay": float("inf")},
        {"decay": False},
        {"decay": None},
        {"strict": 1},
        {"share": 1.01},
        {"share": -1e-9},
        {"rounds": 0},
        {"few": 10},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused_in_one_line(parameters: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="declared") as caught:
        Declared.allocate(LAYOUT, parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"share": 1.5}, "share = 1.5 is not between 0 and 1"),
        ({"rounds": 0}, "rounds = 0 is not at least 1"),
        ({"few": 10}, "few = 10 is not at most 9"),
    ],
)
def test_a_refusal_names_parameter_value_and_range(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Declared.allocate(LAYOUT, parameters)
    assert str(caught.value) == f"policy 'declared': parameter {says}"


def test_bounds_themselves_are_allowed() -> None:
    state = Declared.allocate(LAYOUT, {"share": 1, "rounds": 1, "few": 9})
    assert (state.share, state.rounds, state.few) == (1.0, 1, 9)
    assert set(Declared.ranges()) == {"share", "rounds", "few"}


def test_a_default_lies_within_its_own_bounds() -> None:
    with pytest.raises(PolicyError, match="default of 2 is not between 0 and 1"):
        parameter(2, low=0, high=1)


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        ("s3fifo", {"small_share": 1.5}),
        ("s3fifo", {"ghost_share": -0.1}),
        ("s3fifo", {"move_at": 0}),
        ("s3fifo", {"move_at": 4}),
        ("score", {"decay": 1.1}),
        ("layer-aware", {"decay": -0.1}),
        ("lru-k", {"k": 0}),
        ("lru-k", {"k": 5}),
    ],
    ids=str,
)
def test_own_policies_have_bounds(policy: str, parameters: dict[str, float]) -> None:
    ((name, value),) = parameters.items()
    with pytest.raises(PolicyError, match=f"{policy}.*{name} = {value} is not between"):
        ExpertCache(CacheSpec(1, 4, (2,), np.ones(4, np.int64), policy, parameters), compiled=False)


@pytest.mark.parametrize(
    ("base", "load", "signals"),
    [
        (
            "policies.eviction.base:EvictionPolicy",
            eviction_policy,
            "'nothing', 'gate-weight', 'predicted-use', 'next-use'",
        ),
        ("policies.prefetch.base:Prefetcher", prefetcher, "'nothing', 'lookahead', 'predicted', 'future'"),
    ],
    ids=["eviction", "prefetch"],
)
@pytest.mark.parametrize("reads", ["'everything'", "None", "'lookahead gate-weight'"])
def test_a_signal_that_there_is_not_is_refused_when_the_policy_is_loaded(
    base: str, load: Callable[[str], type], signals: str, reads: str, tmp_path: Path
) -> None:
    module, _, name = base.partition(":")
    (tmp_path / "mine.py").write_text(f"from {module} import {name}\nclass Mine({name}):\n    reads = {reads}\n")
    with pytest.raises(PolicyError, match=f"reads = {reads} is no signal; choose one of {signals}$"):
        load(f"{tmp_path / 'mine.py'}:Mine")


def test_whole_floats_and_integers_are_numbers_of_either_kind() -> None:
    state = Declared.allocate(LAYOUT, {"k": 4.0, "decay": 1})
    assert (state.k, state.decay) == (4, 1.0)
    assert isinstance(state.k, int) and isinstance(state.decay, float)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lur", "did you mean 'lru'"),
        ("", "unknown eviction policy"),
        ("absent.py:Mine", "absent.py"),
        ("{file}:Mine", "no class 'Mine'"),
        ("{file}:Mien", "no class 'Mien'"),
        ("{file}:number", "not a subclass"),
        ("{file}:NotAPolicy", "not a subclass"),
        ("{file}:", "no class ''"),
        ("{broken}:Mine", "SyntaxError"),
        ("{raising}:Mine", "ZeroDivisionError"),
        ("{folder}.py:Mine", ".py"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(name: str, says: str, tmp_path: Path) -> None:
    files = {
        "file": "number = 3\nclass NotAPolicy:\n    pass\n",
        "broken": "class Mine(:\n",
        "raising": "class Mine:\n    x = 1 / 0\n",
    }
    for stem, text in files.items():
        (tmp_path / f"{stem}.py").write_text(text)
    (tmp_path / "folder.py").mkdir()
    paths = {stem: str(tmp_path / f"{stem}.py") for stem in files} | {"folder": str(tmp_path / "folder")}
    with pytest.raises(PolicyError) as caught:
        eviction_policy(name.format(**paths))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_prefetcher_is_no_eviction_policy() -> None:
    with pytest.raises(PolicyError):
        eviction_policy("gate")
    with pytest.raises(PolicyError):
        prefetcher("lru")


def test_impossible_caches_are_refused() -> None:
    with pytest.raises(CapacityError, match="2 groups"):
        ExpertCache(CacheSpec(3, 4, (1, 1), LAYOUT.size))
    with pytest.raises(TracekitError, match="staging"):
        ExpertCache(CacheSpec(3, 4, (1,), LAYOUT.size, "belady", prefetch="oracle", into_cache=True))
