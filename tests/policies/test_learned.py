"""Learned predictors: whole trace, step by step, and torch give the same bits; the arithmetic is exact or refused."""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine.decisions.foresight import Scores  # noqa: E402  # needs torch through the helper
from policies.learned.arithmetic import FINE, LIMIT, UNIT, Operation, Program  # noqa: E402
from policies.learned.artefact import Artefact  # noqa: E402
from policies.learned.features import RATES, in_units  # noqa: E402
from policies.learned.session import Session  # noqa: E402
from policies.learned.verdict import least_score, log2_steps, steps_until  # noqa: E402
from tests.helpers.predictors import random_artefact, varied_trace  # noqa: E402
from tracekit.demand import step_starts  # noqa: E402
from tracekit.errors import PolicyError  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

NAMES = ("linear", "routing", "mlp", "recurrent", "token-popularity", "reuse-distance", "reuse-routing")


def served(artefact: Artefact, trace: Trace, place: Any = lambda array: array, **settings: Any) -> list[list[Any]]:
    """Scores of every visit, step by step."""
    session, starts, card = Session(artefact, **settings), step_starts(trace.step), artefact.card
    lookahead = trace.lookahead(card.distance) if "lookahead" in card.blocks else None
    assert trace.weights is not None
    found = []
    for first, last in itertools.pairwise(starts):
        visits = []
        for layer in range(trace.layers):
            ahead = None
            if lookahead is not None and layer < card.sources:
                wide = card.experts_per_layer[layer + card.distance]
                ahead = place(np.array(lookahead[first:last, layer, :wide]))
            ids = place(trace.experts[first:last, layer].astype(np.int64))
            weights = place(np.array(trace.weights[first:last, layer]))
            tokens = place(trace.token_id[first:last].astype(np.int64))
            visits.append(session.visit(layer, ids, weights, ahead, tokens))
        found.append(visits)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distance", [1, 2])
def test_a_pass_over_the_trace_equals_serving_step_by_step(name: str, distance: int, tmp_path: Path) -> None:
    trace = varied_trace(tmp_path / "t.trace", seed=distance)
    artefact = random_artefact(tmp_path / "p", name, trace, distance=distance)
    own, starts = artefact.card.own_layer, step_starts(trace.step)
    steps = len(starts) - 1
    one_by_one = served(artefact, trace)
    scores = Scores(trace, artefact)
    for first, last in ((0, 7), (7, 8), (8, steps)):  # pieces of any size
        found, _ = scores.piece(first, last)
        for layer, whole in enumerate(found):
            for step in range(first, last):
                rows = slice(starts[step] - starts[first], starts[step + 1] - starts[first])
                wanted = whole[step - first] if own else whole[rows]
                assert np.array_equal(one_by_one[step][layer], wanted, equal_nan=True), (step, layer)
    assert len({float(value) for value in np.concatenate([w.ravel() for w in found]) if value == value}) > 20
    if not own:
        assert one_by_one[0][trace.layers - 1] is None and np.isnan(np.concatenate(found)).any()


def devices() -> list[Any]:
    return [torch.device("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("name", NAMES)
def test_torch_equals_numpy(name: str, device: Any, tmp_path: Path) -> None:
    if str(device) == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    trace = varied_trace(tmp_path / "t.trace", steps=12)
    artefact = random_artefact(tmp_path / "p", name, trace)

    def place(array: np.ndarray) -> Any:
        return torch.from_numpy(array).to(device)

    def zeros(shape: tuple[int, ...]) -> Any:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    tensors = {name: place(tensor) for name, tensor in artefact.tensors.items()}
    by_torch = served(artefact, trace, place, tensors=tensors, zeros=zeros)
    for theirs, ours in zip(by_torch, served(artefact, trace), strict=True):
        for a, b in zip(theirs, ours, strict=True):
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(a.cpu().numpy(), b, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_linear_is_exact(seed: int) -> None:
    """Against fractions: rounded down to whole units, cut off at the limit, whatever the order of adding."""
    rng = np.random.default_rng(seed)
    rows, wide, out = (int(n) for n in rng.integers(1, 40, 3))
    scale = int(rng.choice([1, 100, LIMIT]))
    x = rng.integers(-scale, scale + 1, (rows, wide)).astype(np.float64)
    weight = rng.integers(-(2**25), 2**25, (1, out, wide)).astype(np.float64)
    bias = rng.integers(-(2**31), 2**31, (1, out)).astype(np.float64)
    linear = Operation(kind="linear", inputs=["x"], output="y", tensors=["w", "b"])
    program = Program(operations=[linear], outputs=["y"])
    program.check({"w": weight, "b": bias}, 3, wide, out)
    (found,) = program.run({"w": weight, "b": bias}, 2, {"x": x})
    for row in range(rows):
        (alone,) = program.run({"w": weight, "b": bias}, 0, {"x": x[row : row + 1]})
        assert np.array_equal(alone[0], found[row])
        for m in range(out):
            total = sum(int(a) * int(b) for a, b in zip(x[row], weight[0, m], strict=True)) + int(bias[0, m])
            assert found[row, m] == min(max(Fraction(total, FINE).__floor__(), -LIMIT), LIMIT)


def test_what_could_be_inexact_is_refused() -> None:
    linear = Operation(kind="linear", inputs=["x"], output="y", tensors=["w", "b"])
    program, bias = Program(operations=[linear], outputs=["y"]), np.zeros((1, 1))
    program.check({"w": np.full((1, 1, 3), 2.0**31), "b": bias}, 1, 3, 1)
    with pytest.raises(PolicyError, match="sums would not be exact"):
        program.check({"w": np.full((1, 1, 4), 2.0**31), "b": bias}, 1, 4, 1)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Operation(kind="linear", inputs=["x"], output="y", tensors=["w", "none"]), "'none'"),
        (Operation(kind="linear", inputs=["z"], output="y", tensors=["w", "b"]), "'z'"),
        (Operation(kind="linear", inputs=["x"], output="y", tensors=["w", "w"]), "do not fit"),
        (Operation(kind="embedding", inputs=["x"], output="y", tensors=["w", "b"]), "no input of the right kind"),
        (Operation(kind="slice", inputs=["x"], output="y", numbers=[0, 9]), "columns 0 to 9 of 2"),
        (Operation(kind="clamp", inputs=["x"], output="y", numbers=[3, 1]), "bounds 3 and 1"),
        (Operation(kind="add", inputs=["x"], output="y"), "inputs of"),
        (Operation(kind="relu", inputs=["x"], output="y"), "outputs of widths"),
    ],
)
def test_programs_that_cannot_run_are_refused(operation: Operation, message: str) -> None:
    tensors = {"w": np.ones((1, 3, 2)), "b": np.ones((1, 3))}
    with pytest.raises(PolicyError, match=message):
        Program(operations=[operation], outputs=["y"]).check(tensors, 1, 2, 3)


def test_numbers_in_units() -> None:
    values = np.array([0.0, 1.0, -1.0, 0.5 / UNIT, np.nan, np.inf, -np.inf, 1e4], np.float16)
    limit = 64 * UNIT
    assert in_units(values).tolist() == [0, UNIT, -UNIT, 1, -limit, limit, -limit, limit]


def test_the_memory_is_a_decayed_share() -> None:
    """By hand: an expert chosen at steps 0 and 1 of 3; rate 0 remembers one step, the others fade."""
    from policies.learned.features import remember, remembered

    memory = np.zeros((len(RATES), 1))
    told = []
    for share in (UNIT, UNIT, 0):
        memory = remember(memory, np.array([float(share)]))
        told.append(remembered(memory)[:, 0].tolist())
    assert RATES == (0, 2, 5)
    assert told == [[1024, 256, 32], [1024, 448, 63], [0, 336, 61]]


def test_scores_and_steps() -> None:
    assert least_score(0) == -np.inf and least_score(1) == np.inf and least_score(0.5) == 0
    assert least_score(0.9) == np.floor(np.log(9) * UNIT)
    whole = np.arange(1, 2000).astype(np.float64)
    scores = np.rint(log2_steps(whole) * UNIT)
    assert np.allclose(steps_until(scores), whole, rtol=1 / UNIT)
    assert steps_until(np.array([-5.0, 0, UNIT, 3 * UNIT])).tolist() == [1, 1, 2, 8]
    assert (np.diff(steps_until(np.arange(0.0, 8 * UNIT))) > 0).all()
