"""Plans: what a file may say, what it means, and that nothing else passes."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.plan import Plan, as_plan, load_plan, plan_from_dict
from engine.plan.tables import CachePlan
from tracekit.errors import CapacityError, PlanError, TracekitError

FULL = """
cache.capacity = "4/layer"
eviction.policy = "lru-k"
eviction.k = 2
eviction.decay = 0.5
prefetch.predictor = "gate"
prefetch.distance = 1
prefetch.count = 2
prefetch.target = "staging"
prefetch.staging = 4
prefetch.threshold = 0.25
weights.experts = "hqq-2bit-g16"
weights.attention = "hqq-4bit-g64"
compute.experts = "each"
miss.where = "copy"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "some.plan.toml"
    path.write_text(text)
    return path


def test_a_full_plan(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, FULL))
    assert plan.cache.capacity == "4/layer"
    assert (plan.eviction.policy, plan.eviction.parameters) == ("lru-k", {"k": 2, "decay": 0.5})
    assert (plan.prefetch.distance, plan.prefetch.count, plan.prefetch.staging) == (1, 2, 4)
    assert plan.prefetch.parameters == {"threshold": 0.25}
    assert plan.weights.experts == "hqq-2bit-g16"


def test_every_table_but_cache_may_be_left_out(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, 'cache.capacity = "25%"'))
    assert (plan.eviction.policy, plan.prefetch.predictor, plan.weights.experts) == ("lru", "none", None)


def test_a_plan_survives_being_written_and_read(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, FULL))
    again = load_plan(written(tmp_path, plan.to_toml()))
    assert again == plan
    assert plan_from_dict(plan.to_dict()) == plan


def test_a_plan_from_words_is_the_plan_of_its_file(tmp_path: Path) -> None:
    """A name, or the table that a file would hold; `as_plan` takes whatever names a plan."""
    read = load_plan(written(tmp_path, FULL))
    tables = read.to_dict()
    made = Plan(
        "4/layer",
        eviction=tables["eviction"],
        prefetch=tables["prefetch"],
        weights=tables["weights"],
        miss="copy",
    )
    assert made == read == pickle.loads(pickle.dumps(read))
    for given_plan in (made, tables, tmp_path / "some.plan.toml", str(tmp_path / "some.plan.toml")):
        assert as_plan(given_plan) == read
    plain = Plan("25%", eviction="lfu", weights="bf16")
    assert (plain.eviction.policy, plain.prefetch.predictor, plain.weights.experts) == ("lfu", "none", "bf16")
    assert plain.replace(cache=CachePlan(capacity="512")) == Plan("512", eviction="lfu", weights="bf16")
    with pytest.raises(CapacityError, match="lots"):
        Plan("lots")
    with pytest.raises(PlanError, match="target"):
        Plan("4/layer", prefetch={"predictor": "gate", "target": "disk"})


def test_a_notebook_shows_its_tables_escaped() -> None:
    shown = Plan("4/layer", eviction="./<b>.py:Mine")._repr_html_()
    assert "<th>cache.capacity</th><td>4/layer</td>" in shown and "./&lt;b&gt;.py:Mine" in shown


@given(
    capacity=st.sampled_from(["4/layer", "512", "2000MiB", "25%"]),
    parameters=st.dictionaries(
        st.sampled_from(["k", "decay", "hand"]), st.integers(0, 9) | st.floats(0, 1) | st.booleans()
    ),
    distance=st.integers(1, 64),
)
def test_any_plan_survives_being_written_and_read(capacity: str, parameters: dict[str, Any], distance: int) -> None:
    tables = {"cache": {"capacity": capacity}, "eviction": parameters, "prefetch": {"distance": distance}}
    plan = plan_from_dict(tables)
    assert plan_from_dict(plan.to_dict()) == plan
    assert type(plan) is Plan


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "cache"),
        ('cache.capacity = "4/layer"\ncashe.x = 1', "cashe"),
        ('cache.capacity = "4/layer"\ncache.capacty = "4"', "did you mean 'capacity'"),
        ("cache.capacity = 4", "capacity"),
        ("cache = 4", "cache"),
        ('cache.capacity = "4/layer"\neviction = "lru"', "eviction"),
        ('cache.capacity = "4/layer"\neviction.policy = 3', "policy"),
        ('cache.capacity = "4/layer"\neviction.k = "two"', "eviction"),
        ('cache.capacity = "4/layer"\neviction.k = [1]', "eviction"),
        ('cache.capacity = "4/layer"\nprefetch.distance = 0', "distance"),
        ('cache.capacity = "4/layer"\nprefetch.distance = 1.5', "distance"),
        ('cache.capacity = "4/layer"\nprefetch.count = 99999999999999999999', "count"),
        ('cache.capacity = "4/layer"\nprefetch.target = "disk"', "target"),
        ('cache.capacity = "4/layer"\nprefetch.staging = 0', "staging"),
        ('cache.capacity = "4/layer"\nweights.experts = "hqq-5bit"', "hqq-5bit"),
        ('cache.capacity = "4/layer"\nweights.attention = "fp17"', "fp17"),
        ('cache.capacity = "4/layer"\ncompute.cpu_experts = "auto"', 'write miss.where = "auto"'),
        ('cache.capacity = "4/layer"\ncompute.cpu_experts = "never"', "leave it out"),
        ('cache.capacity = "4/layer"\nmiss.where = "moon"', "where"),
        ('cache.capacity = "4/layer"\nmiss.share = 0.5', 'where = "split"'),
        ('cache.capacity = "4/layer"\nmiss.share = 1.5\nmiss.where = "split"', "share"),
        ('cache.capacity = "4/layer"\nadmission.per_step = -1', "per_step"),
        ('cache.capacity = "4/layer"\nadmission.per_layer = "even"', "give both"),
        ('cache.capacity = "4/layer"\nadmission.threshold = "much"', "admission.threshold"),
        ('cache.capacity = "lots"', "lots"),
        ("cache.capacity = ", "TOML"),
        ("[" * 5000, "TOML"),
        ("\x00", "TOML"),
    ],
)
def test_what_is_refused(text: str, names: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(written(tmp_path, text))
    message = str(caught.value)
    assert names in message
    assert "\n" not in message and len(message) < 500


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(bytes(range(256)))
    huge = tmp_path / "huge.toml"
    huge.write_text('cache.capacity = "4"\n' + "# filler\n" * 20_000)
    for path in (binary, huge, tmp_path, tmp_path / "absent.toml"):
        with pytest.raises(PlanError) as caught:
            load_plan(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_hostile_capacity_is_refused_as_a_plan(tmp_path: Path) -> None:
    with pytest.raises(CapacityError):
        load_plan(written(tmp_path, f'cache.capacity = "{"9" * 50_000}"'))


Scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
Tables = st.dictionaries(
    st.sampled_from(["cache", "eviction", "prefetch", "weights", "compute", "x"]),
    Scalars
    | st.dictionaries(
        st.sampled_from(["capacity", "policy", "parameters", "predictor", "distance", "experts", "y"]),
        Scalars | st.lists(Scalars, max_size=2),
        max_size=4,
    ),
)


@given(Tables)
def test_any_tables_are_a_plan_or_refused_in_one_line(tables: dict[str, Any]) -> None:
    try:
        plan = plan_from_dict(tables)
    except TracekitError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(plan, Plan)


def test_fused_experts_are_a_word_of_the_plan(tmp_path: Path) -> None:
    text = 'cache.capacity = "25%"\ncompute.experts = "fused"\n'
    assert load_plan(written(tmp_path, text)) == Plan("25%", compute_experts="fused")
    with pytest.raises(PlanError, match=r"experts"):
        Plan("25%", compute_experts="all")


def test_kernels_follow_from_how_experts_are_computed_and_may_be_said() -> None:
    assert not Plan("25%").compute.grouped
    assert Plan("25%", compute_experts="fused").compute.grouped
    assert Plan("25%", kernels="grouped").compute.grouped
    assert Plan("25%", kernels="grouped").to_dict()["compute"]["kernels"] == "grouped"
    assert "kernels" not in Plan("25%").to_dict()["compute"]
    with pytest.raises(PlanError, match='"eager" computes one expert at a time: "fused" experts need "grouped"'):
        Plan("25%", compute_experts="fused", kernels="eager")
    with pytest.raises(PlanError, match="kernels"):
        Plan("25%", kernels="triton")
