"""Declared state and parameters of policies, and finding policies by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.cache import CacheSpec, ExpertCache
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
    ],
    ids=str,
)
def test_impossible_parameters_are_refused_in_one_line(parameters: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="declared") as caught:
        Declared.allocate(LAYOUT, parameters)
    assert "\n" not in str(caught.value)


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
