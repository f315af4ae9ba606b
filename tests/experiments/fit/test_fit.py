"""`tracekit fit`: the same seed gives the same file, interruptions change nothing, what cannot serve is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.decisions.foresight import Scores  # noqa: E402
from experiments.cli.main import run  # noqa: E402  # needs torch
from experiments.fit import train as training  # noqa: E402
from experiments.fit.counted import Counted  # noqa: E402
from experiments.fit.examples import FAR, make_data, steps_until_next, vocabulary  # noqa: E402
from experiments.fit.fit_predictor import fit, spelled  # noqa: E402
from experiments.fit.judge import judge_predictor  # noqa: E402
from experiments.fit.split import split_requests  # noqa: E402
from experiments.fit.train import CHECKPOINT, Training  # noqa: E402
from policies.learned.artefact import CARD, TENSORS, load_artefact  # noqa: E402
from tests.helpers.predictors import UNUSED, random_artefact, varied_trace  # noqa: E402
from tests.helpers.traces import make_trace  # noqa: E402
from tracekit.demand import step_starts  # noqa: E402
from tracekit.edit.slice import Selection, slice_trace  # noqa: E402
from tracekit.errors import PlanError, PolicyError  # noqa: E402
from tracekit.rows import DECODE  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

PAGE = Path(__file__).resolve().parents[3] / "docs" / "predictors.md"


def predictable(path: Path, *, requests: int = 12, length: int = 20) -> Trace:
    """Layer l + 1 chooses what follows from layer l's choice and the token; lookahead says nothing."""
    rng = np.random.default_rng(1)
    tokens, layers, experts = requests * length, 3, 8
    token = rng.integers(0, 4, tokens)
    chosen = np.zeros((tokens, layers, 2), np.uint16)
    chosen[:, 0] = rng.random((tokens, experts)).argsort(axis=1)[:, :2]
    for layer in range(1, layers):
        first = (chosen[:, layer - 1, 0] * 3 + 1) % experts
        chosen[:, layer] = np.stack([first, (first + 1 + token) % experts], axis=1)
    return make_trace(
        path,
        chosen,
        num_experts=experts,
        expert_bytes=[1000] * layers,
        request=np.repeat(np.arange(requests), length),
        phase=DECODE,
        token_id=token,
        weights=np.full(chosen.shape, 0.5, np.float16),
        lookahead={1: rng.normal(size=(tokens, layers - 1, experts)).astype(np.float16)},
    )


def test_what_can_be_predicted_is_learned(tmp_path: Path) -> None:
    """Held out, the regression finds the first expert of each pair; guessing would find a quarter."""
    trace = predictable(tmp_path / "t.trace")
    options = Training(epochs=60, learning_rate=0.05)
    card = fit("routing", trace, tmp_path / "p", held_out=[9, 10, 11], options=options)
    assert card.held_out["lookups"] == 3 * 20 * 2 * 2
    assert card.held_out["recall"]["2"] > 0.5 and card.held_out["precision"]["1"] > 0.6
    assert card.held_out["calibration"] < 0.1
    assert card.fitted.held_out == [9, 10, 11] and len(card.fitted.requests) == 9
    assert card.measured_ns_per_visit > 0 and card.parameters == 2 * (5 * 8 + 1) * 8


@pytest.mark.parametrize("name", ["mlp", "recurrent", "token-popularity", "reuse-distance"])
def test_a_seed_is_a_file_and_an_interruption_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    epochs = 0 if name == "token-popularity" else 4

    def fitted(place: str, seed: int = 0, **settings: Any) -> bytes:
        options = Training(epochs=epochs, batch=16, seed=seed)
        fit(name, trace, tmp_path / place, held_out=[5], options=options, **settings)
        assert not (tmp_path / place / CHECKPOINT).exists()
        return (tmp_path / place / TENSORS).read_bytes()

    once = fitted("a")
    assert once == fitted("b")
    if not epochs:
        return
    assert once != fitted("c", seed=1)

    done: list[int] = []

    def interrupt(amount: int) -> None:
        done.append(amount)
        if sum(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted("d", progress=interrupt)
    assert not (tmp_path / "d" / CARD).exists() and (tmp_path / "d" / CHECKPOINT).exists()
    ran: list[int] = []
    real = training._epoch
    monkeypatch.setattr(training, "_epoch", lambda *given: (ran.append(given[-1]), real(*given)))
    assert fitted("d") == once and ran == [2, 3]
    # The checkpoint of another fit is not continued.
    with pytest.raises(KeyboardInterrupt):
        done.clear()
        fitted("e", seed=1, progress=interrupt)
    assert fitted("e") == once


def test_examples_are_what_comes_next(tmp_path: Path) -> None:
    """Labels of prefetching and of eviction against the trace, one by one."""
    trace = varied_trace(tmp_path / "t.trace", seed=8, steps=20)
    index = vocabulary(trace, 3)
    data = make_data(trace, ("chosen", "lookahead"), 2, index)
    wide = trace.manifest.experts_per_layer
    for row in range(trace.tokens):
        for source in range(trace.layers - 2):
            came = {int(e) for e in trace.experts[row, source + 2] if e != UNUSED}
            here = (trace.experts[row, source] != UNUSED).any()
            assert {e for e in range(6) if data.wanted[row, source, e]} == came
            counted = [bool(here and came and e < wide[source + 2]) for e in range(6)]
            assert data.counts[row, source].tolist() == counted
    kept = np.argsort(-np.bincount(trace.token_id), kind="stable")[:3]
    assert {int(t) for t in range(len(index) - 1) if index[t + 1]} == set(kept.tolist()) and index[0] == 0

    starts = step_starts(trace.step)
    until = steps_until_next(trace, starts)
    used = [
        [set(trace.experts[starts[s] : starts[s + 1], layer].ravel().tolist()) for layer in range(trace.layers)]
        for s in range(20)
    ]
    for step in range(20):
        for layer in range(trace.layers):
            for expert in range(6):
                later = [s - step for s in range(step + 1, 20) if expert in used[s][layer]]
                assert until[step, layer, expert] == (later[0] if later else FAR)


def test_recall_and_precision_are_counted_as_they_are_defined(tmp_path: Path) -> None:
    """Against a count by sets, one token and layer at a time; calibration against its definition."""
    from engine.decisions.foresight import Scores
    from policies.learned.arithmetic import UNIT

    trace = varied_trace(tmp_path / "t.trace", seed=9)
    artefact = random_artefact(tmp_path / "p", "mlp", trace)
    found = judge_predictor(artefact, trace)
    scores, _ = Scores(trace, artefact).piece(0, len(step_starts(trace.step)) - 1)
    for m in (1, 2, 3):
        hits = chosen = suggested = 0
        for row in np.flatnonzero(trace.phase == DECODE).tolist():
            for layer, of_layer in enumerate(scores):
                wide = artefact.card.experts_per_layer[layer + 1]
                own = of_layer[row, :wide]
                if np.isnan(own).any():
                    continue
                best = sorted(range(wide), key=lambda e: (-own[e], e))[:m]
                came = {int(e) for e in trace.experts[row, layer + 1] if e != UNUSED}
                hits, chosen, suggested = hits + len(came & set(best)), chosen + len(came), suggested + len(best)
        assert found["recall"][str(m)] == pytest.approx(hits / chosen)
        assert found["precision"][str(m)] == pytest.approx(hits / suggested)
        assert found["lookups"] == chosen
    assert 0 < found["calibration"] < 1 and UNIT == 1024


OWN = """
import torch
from torch import nn
from experiments.fit.modules import Predictor


class Mine(Predictor):
    blocks = ("recent", "chosen")
    epochs = 1

    def __init__(self, shape, hidden=4):
        super().__init__()
        self.first = nn.Linear(shape.features, hidden)
        self.second = nn.Linear(hidden, shape.experts)

    def forward(self, x):
        return {}
"""


def test_a_predictor_of_ones_own(tmp_path: Path) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace("{}", "self.second(torch.relu(self.first(x)))"))
    card = fit(f"{path}:Mine", trace, tmp_path / "p", held_out=[5], hyperparameters={"hidden": "6"})
    assert card.predictor == "Mine" and card.hyperparameters["hidden"] == 6
    assert [operation.kind for operation in card.program.operations] == ["linear", "relu", "linear"]
    assert load_artefact(tmp_path / "p", "prefetch").tensors["first.weight"].shape == (2, 6, 32)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("self.second(torch.tanh(self.first(x)))", "Mine.forward does tanh, which has no exact counterpart: there are"),
        ("self.second(self.first(x) * 2)", "does mul"),
        ("self.second(self.first(x).sigmoid())", "does sigmoid"),
        ("self.second(self.first(x)) if x.sum() > 0 else x", "cannot be traced"),
        ("self.first(x)", "outputs of widths"),
        ("self.second(self.first(x).clamp(min=0.0))", "clamp needs both"),
    ],
)
def test_modules_that_cannot_be_exact_are_refused(forward: str, message: str, tmp_path: Path) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    (tmp_path / "mine.py").write_text(OWN.replace("{}", forward))
    with pytest.raises((PolicyError, RuntimeError), match=message):
        fit(f"{tmp_path}/mine.py:Mine", trace, tmp_path / "p", held_out=[], options=Training(epochs=0))
    assert not (tmp_path / "p" / CARD).exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = predictable(tmp_path / "t.trace", requests=8)
    assert run(["fit", "routing", str(trace.path), "-o", str(tmp_path / "p"), "--epochs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fitted"]["held_out"] == [6, 7] and found["held_out"]["recall"]["1"] > 0
    replayed = ["replay", str(trace.path), "--capacity", "2/layer", "--prefetch", "learned", "--prefetch-artefact"]
    assert run([*replayed, str(tmp_path / "p")]) == 2
    assert "fitted on 6 of the 8 requests" in capsys.readouterr().err
    assert run([*replayed, str(tmp_path / "p"), "--allow-fitted", "--no-bounds"]) == 0
    assert "NOT EVIDENCE" in capsys.readouterr().out
    sliced = ["slice", str(trace.path), "--requests", spelled([6, 7]), "-o", str(tmp_path / "test.trace")]
    assert run(sliced) == 0
    assert run(["replay", str(tmp_path / "test.trace"), *replayed[2:], str(tmp_path / "p"), "--no-bounds"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["liner"], "unknown predictor 'liner'; did you mean 'linear'"),
        (["./none.py:Mine"], "policy file none.py: No such file"),
        (["linear", "--distance", "3"], "a distance of 3 among 3 MoE layers: give 1 to 2"),
        (["linear", "--distance", "2"], "does not hold: record with --lookahead 2"),
        (["mlp", "--set", "hiden=3"], "no hyperparameter 'hiden'; did you mean 'hidden'"),
        (["mlp", "--set", "hidden=many"], "hidden = 'many' is not int"),
        (["mlp", "--set", "hidden"], "--set takes NAME=VALUE"),
        (["mlp", "--hold-out-requests", "0:9"], "no request to fit on"),
        (["mlp", "--hold-out-requests", "x"], "expected FIRST:END"),
        (["mlp", "--hold-out-domain", "code"], "needs --prompts"),
        (["mlp", "--hold-out-domain", "code", "--hold-out-requests", "1"], "give one"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    code = run(["fit", arguments[0], str(trace.path), "--output", str(tmp_path / "p"), *arguments[1:]])
    told = capsys.readouterr().err
    assert code == 2 and message in told and told.count("\n") == 1 and told.startswith("error: ")


def plain(shown: str) -> str:
    """What a table says, without its lines."""
    return " ".join(re.sub("[┃│]", " ", shown).split())


def test_copies_of_what_is_tested_are_not_fitted_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Request 1 is 4 once more, and 4 is held out; the slice that is recommended is no one's evidence."""
    rng = np.random.default_rng(3)
    chosen = rng.random((100, 2, 8)).argsort(axis=2)[:, :, :2]
    chosen[20:40] = chosen[80:100]
    trace = make_trace(tmp_path / "t.trace", chosen, num_experts=8, request=np.repeat(np.arange(5), 20))
    assert split_requests(trace, [4]) == ([0, 2, 3], [1, 4])
    assert split_requests(trace, []) == ([0, 1, 2, 3, 4], [])
    assert run(["fit", "routing", str(trace.path), "-o", str(tmp_path / "p"), "--epochs", "1"]) == 0
    shown = plain(capsys.readouterr().out)
    assert "as copies of them 1 " in shown and "--requests 1,4" in shown
    assert run(["slice", str(trace.path), "--requests", "1,4", "-o", str(tmp_path / "test.trace")]) == 0
    replayed = ["--capacity", "3/layer", "--prefetch", "learned", "--prefetch-artefact", str(tmp_path / "p")]
    assert run(["replay", str(tmp_path / "test.trace"), *replayed, "--no-bounds"]) == 0
    same = make_trace(tmp_path / "s.trace", np.tile(chosen[:20], (3, 1, 1)), request=np.repeat(np.arange(3), 20))
    with pytest.raises(PolicyError, match="no request to fit on beside those held out and their copies"):
        fit("routing", same, tmp_path / "q", held_out=[2])


def test_what_is_not_there_is_said_of_the_trace_that_was_given(tmp_path: Path) -> None:
    bare = make_trace(tmp_path / "bare.trace", np.tile([[[0, 1]]], (40, 3, 1)), request=np.repeat([0, 1, 2, 3], 10))
    for name, words in (("token-popularity", "reads token ids"), ("linear", ""), ("mlp", "")):
        try:
            fit(name, bare, tmp_path / name, held_out=[])
        except PolicyError as error:
            assert str(bare.path) in str(error) and words in str(error)
        else:
            assert not words
    half = make_trace(tmp_path / "half.trace", bare.experts, request=bare.request, token_id=np.repeat([5, -1], 20))
    with pytest.raises(PolicyError, match=r"token ids, which .*half.trace does not hold of request 2"):
        fit("token-popularity", half, tmp_path / "h", held_out=[3])
    fitted = predictable(tmp_path / "t.trace", requests=4)
    fit("token-popularity", fitted, tmp_path / "p", held_out=[3])
    nameless = make_trace(tmp_path / "nameless.trace", fitted.experts, num_experts=8, request=fitted.request + 10)
    with pytest.raises(PlanError, match=r"reads token ids, which .*nameless.trace does not hold"):
        Scores(nameless, load_artefact(tmp_path / "p", "prefetch"))


def test_what_counting_alone_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layer 1's first expert follows from layer 0's first; the popular ones are guesses at chance."""
    trace = predictable(tmp_path / "t.trace")
    card = fit("linear", trace, tmp_path / "p", held_out=[9, 10, 11], options=Training(epochs=0))
    markov, popular = card.held_out["recall_markov"], card.held_out["recall_popular"]
    counted = Counted(slice_trace(trace, Selection(requests="0:9"), tmp_path / "own.trace"), 1)
    rows = np.flatnonzero(trace.request >= 9)
    for m in (1, 2, 4):
        right = {"popular": 0, "markov": 0}
        for layer in range(2):
            for name, scores in counted.scores(layer, trace.experts[rows, layer], 8).items():
                for row, score in zip(rows, scores, strict=True):
                    best = np.argsort(-score.astype(np.float32), kind="stable")[:m]
                    right[name] += len(np.intersect1d(best, trace.experts[row, layer + 1]))
        assert markov[str(m)] == pytest.approx(right["markov"] / (len(rows) * 4))
        assert popular[str(m)] == pytest.approx(right["popular"] / (len(rows) * 4))
    assert markov["2"] > popular["2"] + 0.05 and markov["8"] == popular["8"] == 1
    after = np.zeros((8, 8))
    for row in np.flatnonzero(trace.request < 9):
        after[np.ix_(trace.experts[row, 0], trace.experts[row, 1])] += 1
    np.testing.assert_allclose(counted._after[0, :8, :8], after)
    assert run(["fit", "linear", str(trace.path), "-o", str(tmp_path / "q"), "--epochs", "1"]) == 0
    assert re.search(r"recall 2 .*\(markov 0\.[0-9]+, popular 0\.[0-9]+\)", plain(capsys.readouterr().out))


def test_settings_that_learn_nothing_still_make_a_predictor(tmp_path: Path) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    arguments = ["--learning-rate", "10", "--epochs", "3", "--weight-decay", "10"]
    assert run(["fit", "linear", str(trace.path), "--output", str(tmp_path / "p"), *arguments]) == 0
    assert load_artefact(tmp_path / "p", "prefetch").card.held_out["lookups"] > 0


def test_a_finished_predictor_is_not_overwritten(tmp_path: Path) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    options = Training(epochs=0)
    fit("routing", trace, tmp_path / "p", held_out=[], options=options)
    with pytest.raises(PolicyError, match="holds a fitted predictor: choose another --output"):
        fit("routing", trace, tmp_path / "p", held_out=[], options=options)


def test_domains_are_held_out_by_the_ids_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = predictable(tmp_path / "t.trace", requests=6)
    ids = ["prose-0", "code-0", "tables-0", "prose-1", "code-1", "tables-1"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": name, "prompt": "x"}) + "\n" for name in ids))
    given = ["--hold-out-domain", "code", "--prompts", str(prompts), "--epochs", "0", "--json"]
    assert run(["fit", "routing", str(trace.path), "-o", str(tmp_path / "p"), *given]) == 0
    assert json.loads(capsys.readouterr().out)["fitted"]["held_out"] == [1, 4]


def test_numbers_are_spelled_as_slices_take_them() -> None:
    assert spelled([3, 1, 2, 7, 9, 10]) == "1:4,7,9:11" and spelled([]) == ""


def test_the_page_s_example_is_a_predictor(tmp_path: Path) -> None:
    """docs/predictors.md: its class fits as it stands there."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(block.strip().splitlines()) <= 24
    (tmp_path / "mine.py").write_text(block)
    name = re.findall(r"^class (\w+)", block, flags=re.M)[0]
    trace = predictable(tmp_path / "t.trace", requests=6)
    card = fit(f"{tmp_path}/mine.py:{name}", trace, tmp_path / "p", held_out=[5], options=Training(epochs=1))
    assert card.held_out["recall"]["8"] == 1.0


def test_studies_refuse_what_was_fitted_on_and_rank_the_rest(tmp_path: Path) -> None:
    from experiments.study.run_study import run_study
    from experiments.study.study_file import study_from_dict
    from experiments.study.workers import Threads

    trace = predictable(tmp_path / "t.trace", requests=24)
    fit("routing", trace, tmp_path / "p", held_out=list(range(12, 24)), options=Training(epochs=1))
    assert run(["slice", str(trace.path), "--requests", "12:24", "-o", str(tmp_path / "unseen.trace")]) == 0
    prefetch = ["none", {"predictor": "learned", "artefact": "p", "count": [1, 2]}]
    grid = {"capacity": "2/layer", "prefetch": prefetch, "hardware": "h100", "model_shape": "mixtral-8x7b"}
    seen, unseen = (
        run_study(study_from_dict({"traces": name, "grid": grid}, folder=tmp_path), tmp_path / name[:-6], Threads(1))
        for name in ("t.trace", "unseen.trace")
    )
    assert seen.failed == 2 and "no evidence" in seen.errors[0].error
    (setting,) = unseen.settings
    assert unseen.failed == 0 and len(setting.ranking) == 3
    assert setting.ranking[0].startswith("1. ")
    assert sum("learned (of p" in line.partition(", level")[0] for line in setting.ranking) == 2
