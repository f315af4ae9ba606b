"""Experts on disk: the same output from a directory of slabs, reopened without loading experts, and never trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.plan import Plan, plan_from_dict
from engine.runtime import offload, offloaded
from tests.engine.runtime.models import FAMILIES, answer, same
from tracekit.errors import ModelError, PlanError

torch = pytest.importorskip("torch")
from engine.runtime.disk_store import DiskStore  # noqa: E402  # needs torch
from engine.runtime.rounding import rounded  # noqa: E402
from engine.runtime.store import ExpertStore  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.reference_model import CHECKPOINTS, NAMES  # noqa: E402
from tracekit.recorder.models import load_model  # noqa: E402

MINI = CHECKPOINTS / NAMES[0]


def plan_of(**tables: Any) -> Plan:
    return plan_from_dict({"cache": {"capacity": "2/layer"}, **tables})


@pytest.mark.parametrize("weights", [{}, {"experts": "hqq-3bit-g16", "attention": "hqq-8bit-g16"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_disk_it_says_the_same(
    family: str, weights: dict[str, str], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    if weights:
        pytest.importorskip("hqq.core.quantize")
    plan, slabs = plan_of(weights=weights, prefetch={"predictor": "gate"}), tmp_path / "m.slabs"
    expected = answer(rounded(make_model(family), plan.weights))
    for _ in ("written", "opened"):
        model = offload(make_model(family), plan, host="disk", slabs=slabs)
        with offloaded(model) as state:
            assert isinstance(state.store, DiskStore)
            assert same(answer(model), expected)
            assert all(parameter.is_meta for layer in state.layers for parameter in layer.experts.parameters())
    assert sorted(path.name for path in slabs.iterdir()) == sorted(
        ["index.json", "rest.safetensors", *(f"layer-{layer:05d}.slabs" for layer in range(3))]
    )


@pytest.fixture(scope="module")
def slabs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slabs") / "mini.slabs"
    model, _ = load_model(MINI, "float32", "cpu")
    offloaded(offload(model, plan_of(), host="disk", slabs=path)).close()
    return path


def test_a_model_reopens_without_its_experts(slabs: Path) -> None:
    plain, _ = load_model(MINI, "float32", "cpu")
    plain.set_experts_implementation("eager")
    model = offload(MINI, plan_of(), host="disk", slabs=slabs)
    assert model.dtype is torch.float32
    assert model.generation_config.eos_token_id == plain.generation_config.eos_token_id
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied
    with offloaded(model):
        assert same(answer(model), answer(plain))
    with pytest.raises(ModelError, match="holds the model in float32, not in bf16"):
        offload(MINI, plan_of(), host="disk", slabs=slabs, dtype="bf16")


def test_slabs_are_read_back_into_memory_without_converting(
    tmp_path: Path, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hqq.core.quantize")
    plan, path = plan_of(weights={"experts": "hqq-4bit-g16", "attention": "hqq-8bit-g16"}), tmp_path / "m.slabs"
    with offloaded(offload(make_model(), plan, slabs=path)) as state:  # written first, then read
        assert isinstance(state.store, ExpertStore)
    monkeypatch.setattr("engine.runtime.layout.quantise", None)
    reopened = offload(make_model(), plan, slabs=path)
    monkeypatch.undo()
    with offloaded(reopened) as state, offloaded(offload(make_model(), plan)) as converted:
        assert isinstance(state.store, ExpertStore)
        for key in range(3 * 8):
            assert torch.equal(state.store.slab(key), converted.store.slab(key))
        assert same(answer(reopened), answer(rounded(make_model(), plan.weights)))


def test_commands_take_a_directory_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.slabs"
    arguments = ["generate", str(MINI), "The list is", "--capacity", "3/layer", "--max-new-tokens", "6", "--json"]
    found = []
    for more in ([], ["--host", "disk", "--slabs", str(path)], ["--host", "disk", "--slabs", str(path)]):
        assert run([*arguments, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["token_ids"] == found[1]["token_ids"] == found[2]["token_ids"]
    assert [one["host"] for one in found] == ["memory", "disk", "disk"]
    assert [one["slabs"] and one["slabs"]["written"] for one in found] == [None, True, False]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"id": "a", "prompt": "The module"}) + "\n")
    checked = ["validate", str(MINI), "--prompts", str(prompts), "--capacity", "3/layer", "--hardware", "t4"]
    assert run([*checked, "--host", "disk", "--slabs", str(path), "--max-new-tokens", "6", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["passed"] and verdict["host"] == f"on disk, in {path}"
    for wrong in (["--host", "disk"], ["--slabs", str(tmp_path)], ["--host", "tape"]):
        assert run([*arguments, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def damage(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_flipped_byte_is_an_error_and_never_an_answer(slabs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.slabs"
    shutil.copytree(slabs, copy)
    size = (copy / "layer-00001.slabs").stat().st_size
    for expert in range(8):
        damage(copy / "layer-00001.slabs", expert * (size // 8) + 1000)
    model = offload(MINI, plan_of(), host="disk", slabs=copy)
    with offloaded(model), pytest.raises(ModelError, match=r"layer-00001.slabs is damaged at expert"):
        answer(model)
    with pytest.raises(ModelError, match=r"layer-00001.slabs is damaged at expert 0"):
        offload(MINI, plan_of(), slabs=copy)
    damage(copy / "rest.safetensors", 5000)
    with pytest.raises(ModelError, match="its digest is not the index's"):
        offload(MINI, plan_of(), host="disk", slabs=copy)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "index.json").unlink(), "no directory of slabs"),
        (lambda p: (p / "index.json").write_text("{"), "damaged"),
        (lambda p: (p / "index.json").write_text("[]"), "damaged"),
        (lambda p: (p / "index.json").write_text('{"version": 2}'), "version 2, this engine reads 1"),
        (lambda p: (p / "layer-00002.slabs").unlink(), "missing or damaged"),
        (lambda p: (p / "layer-00002.slabs").write_bytes(b"x"), "missing or damaged"),
        (lambda p: (p / "rest.safetensors").unlink(), "cannot be read"),
    ],
)
def test_a_spoiled_directory_is_refused(
    spoil: Callable[[Path], object], message: str, slabs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.slabs"
    shutil.copytree(slabs, copy)
    spoil(copy)
    with pytest.raises(ModelError, match=message) as caught:
        offload(MINI, plan_of(), host="disk", slabs=copy)
    assert "\n" not in str(caught.value)


def test_slabs_of_something_else_are_refused(slabs: Path, tmp_path: Path) -> None:
    other, _ = load_model(CHECKPOINTS / NAMES[1], "float32", "cpu")
    with pytest.raises(ModelError, match="another configuration"):
        offload(other, plan_of(), host="disk", slabs=slabs)
    model, _ = load_model(MINI, "float32", "cpu")
    with pytest.raises(ModelError, match="experts and attention in as loaded and as loaded, the plan says hqq-4bit"):
        offload(model, plan_of(weights={"experts": "hqq-4bit"}), host="disk", slabs=slabs)
    model, _ = load_model(MINI, "bfloat16", "cpu")
    with pytest.raises(ModelError, match="another model"):
        offload(model, plan_of(), host="disk", slabs=slabs)
    changed = tmp_path / "changed"
    shutil.copytree(MINI, changed)
    damage(changed / "model.safetensors", (changed / "model.safetensors").stat().st_size - 100)
    model, _ = load_model(changed, "float32", "cpu")
    with pytest.raises(ModelError, match="slabs of other weights"):
        offload(model, plan_of(), host="disk", slabs=slabs)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_nothing_is_left_of_a_directory_that_could_not_be_written(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.runtime import slab_files

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slab_files, "write_rest", full)
    with pytest.raises(ModelError, match="No space left on device"):
        offload(make_model(), plan_of(), host="disk", slabs=tmp_path / "x.slabs")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="there is no directory"):
        offload(make_model(), plan_of(), host="disk", slabs=tmp_path / "no" / "x.slabs")
    with pytest.raises(PlanError, match="disk"):
        offload(make_model(), plan_of(), host="disk")
