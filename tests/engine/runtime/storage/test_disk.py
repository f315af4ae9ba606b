"""Experts on disk: the same output from a directory of slabs, reopened without loading experts, and never trusted."""

import fcntl
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.runtime import offload, offloaded
from tests.engine.runtime.models import FAMILIES, MakeModel, answer, plan_of, same
from tracekit.errors import ModelError, PlanError

torch = pytest.importorskip("torch")
from safetensors import SafetensorError  # noqa: E402  # needs torch

from engine.runtime.storage.disk_store import DiskStore  # noqa: E402  # needs torch
from engine.runtime.storage.host_store import HostStore  # noqa: E402
from engine.runtime.storage.rounding import rounded  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from tracekit.recorder.models import load_model  # noqa: E402

MINI = CHECKPOINTS / NAMES[0]


@pytest.mark.parametrize("weights", [{}, {"experts": "hqq-3bit-g16", "attention": "hqq-8bit-g16"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_disk_it_says_the_same(
    family: str, weights: dict[str, str], make_model: MakeModel, tmp_path: Path
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
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hqq.core.quantize")
    plan, path = plan_of(weights={"experts": "hqq-4bit-g16", "attention": "hqq-8bit-g16"}), tmp_path / "m.slabs"
    with offloaded(offload(make_model(), plan, slabs=path)) as state:  # written first, then read
        assert isinstance(state.store, HostStore)
    monkeypatch.setattr("engine.runtime.storage.slab_layout.quantised_on", None)
    reopened = offload(make_model(), plan, slabs=path)
    monkeypatch.undo()
    with offloaded(reopened) as state, offloaded(offload(make_model(), plan)) as converted:
        assert isinstance(state.store, HostStore)
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
    assert (
        run([*checked, "--host", "disk", "--slabs", str(path), "--max-new-tokens", "6", "--threshold", "1e9", "--json"])
        == 0
    )
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
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.runtime.storage import slab_files

    reasons: list[BaseException] = [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ]
    for name in ("write_layer", "write_rest", "write_index"):
        for reason in reasons:
            monkeypatch.setattr(slab_files, name, lambda *_, reason=reason: throw(reason))
            with pytest.raises(ModelError, match="No space left on device"):
                offload(make_model(), plan_of(), host="disk", slabs=tmp_path / "x.slabs")
            assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(slab_files, name, lambda *_: throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            offload(MINI, plan_of(), host="disk", slabs=tmp_path / "x.slabs")
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
    monkeypatch.setattr(slab_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match=r"it takes \d+ bytes, and the disk has 1000 left"):
        offload(MINI, plan_of(), host="disk", slabs=tmp_path / "x.slabs")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="is no directory that can be written to"):
        offload(make_model(), plan_of(), host="disk", slabs=tmp_path / "no" / "x.slabs")
    with pytest.raises(PlanError, match="disk"):
        offload(make_model(), plan_of(), host="disk")


def throw(error: BaseException) -> None:
    raise error


def test_a_disk_that_takes_no_more_is_said_and_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """The system stops writing in the middle of a file; then one finds what a process that was killed had written."""
    path = tmp_path / "x.slabs"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(ModelError, match=r"cannot write .*: File too large"):
            offload(MINI, plan_of(), host="disk", slabs=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / ".x.slabs.partial"
    left.mkdir()
    (left / "layer-00000.slabs").write_bytes(b"half")
    held = os.open(left, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="is being written by another process"):
            offload(MINI, plan_of(), host="disk", slabs=path)
        assert (left / "layer-00000.slabs").read_bytes() == b"half"
    finally:
        os.close(held)
    with offloaded(offload(MINI, plan_of(), host="disk", slabs=path)) as state:
        assert isinstance(state.store, DiskStore)
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_change_while_a_model_runs_end_the_step_and_not_the_model(slabs: Path, tmp_path: Path) -> None:
    """Within a minute: nobody waits for a copy that will not come. Once the file is whole again, so is the model."""
    copy = tmp_path / "copy.slabs"
    shutil.copytree(slabs, copy)
    model = offload(MINI, plan_of(), host="disk", slabs=copy)
    whole = (copy / "layer-00001.slabs").read_bytes()
    with offloaded(model) as state:
        expected = answer(model)
        os.truncate(copy / "layer-00001.slabs", len(whole) // 2)
        state.reset()
        found: list[BaseException] = []
        runner = threading.Thread(target=lambda: found.append(failure(lambda: answer(model))), daemon=True)
        runner.start()
        runner.join(60)
        assert not runner.is_alive()
        assert isinstance(found[0], ModelError) and "has become shorter" in str(found[0])
        with pytest.raises(ModelError, match=r"call offloaded\(model\).reset\(\)"):
            answer(model)
        (copy / "layer-00001.slabs").write_bytes(whole)
        state.reset()
        assert same(answer(model), expected)


def failure(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    return AssertionError("it did not fail")
