"""A checkpoint is loaded shard by shard: the model of every family comes out as transformers loads it, never twice."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.runtime import offload, offloaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402  # needs torch

from engine.runtime.storage.checkpoint import Checkpoint  # noqa: E402
from engine.runtime.storage.conversion import groups_of  # noqa: E402
from engine.runtime.storage.sharded_loading import too_old  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from tests.engine.runtime.models import MakeModel, answer, plan_of, same  # noqa: E402
from tests.tracekit.recorder.exactness import documented  # noqa: E402
from tests.tracekit.recorder.families import build  # noqa: E402
from tracekit.errors import ModelError, PlanError  # noqa: E402
from tracekit.recorder.models import load_model  # noqa: E402
from tracekit.recorder.seam import moe_layers, seam_names, text_decoder  # noqa: E402

in_parts = pytest.mark.skipif(bool(too_old()), reason=too_old() or "models are loaded in parts")
WHOLE = {"diffusion_gemma", "ernie4_5_vl_moe"}  # experts tied to an encoder's, and made together with vision's


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()


def tensors_of(model: Any) -> dict[str, Any]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("package", sorted(documented()))
def test_a_family_is_loaded_as_transformers_loads_it(package: str, found: dict[str, list[str]], tmp_path: Path) -> None:
    """Every slab, every other tensor, configuration and settings of generation; from a checkpoint in several files."""
    if package not in found:
        pytest.skip(f"transformers {transformers.__version__} has no {package}")
    try:
        built = build(package, found[package])
    except LookupError as error:
        pytest.skip(str(error))
    if not seam_names(text_decoder(built)[1]):
        pytest.skip("not on the experts seam, which offloading needs")
    built.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = type(built).from_pretrained(tmp_path)
    said: list[str] = []
    streamed = offload(tmp_path, plan_of(), say=said.append)
    assert bool(said) == (package in WHOLE or bool(too_old()))
    with offloaded(offload(whole, plan_of())) as one, offloaded(streamed) as two:
        assert torch.equal(one.store._buffer, two.store._buffer)
        assert one.accumulate == two.accumulate
    ours, theirs = tensors_of(streamed), tensors_of(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape, ours[name].is_meta) == (tensor.dtype, tensor.shape, tensor.is_meta)
        assert tensor.is_meta or ours[name].requires_grad == tensor.requires_grad
        assert tensor.is_meta or torch.equal(ours[name].nan_to_num(), tensor.nan_to_num()), name
    for settings in ("config", "generation_config"):
        mine, others = getattr(streamed, settings, None), getattr(whole, settings, None)
        assert (mine and mine.to_dict()) == (others and others.to_dict())


def test_what_transformers_would_load_is_what_groups_say(found: dict[str, list[str]], tmp_path: Path) -> None:
    """Against a slow reading of the checkpoint: each group, converted whole, is the parameter itself."""
    built = build("qwen3_moe", found["qwen3_moe"])
    built.save_pretrained(tmp_path)
    expected = tensors_of(built)
    with Checkpoint(tmp_path) as checkpoint:
        groups = groups_of(type(built)(built.config).to("meta"), checkpoint)
        assert {name for group in groups for name in group.names} == set(checkpoint)
        for group in groups:
            tensors = {pattern: [checkpoint[name].read() for name in names] for pattern, names in group.sources.items()}
            for name, value in group.convert(built, tensors).items():
                assert torch.equal(value, expected[name]), name
    kinds = {group.kept(8, checkpoint) for group in groups if "experts" in group.targets[0]}
    assert kinds == {"listed"}


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_it_answers_as_a_loaded_model_does(dtype: str) -> None:
    path = CHECKPOINTS / NAMES[1]
    plain, _ = load_model(path, dtype, "cpu")
    plain.set_experts_implementation("eager")
    model = offload(path, plan_of(prefetch={"predictor": "gate"}), dtype=dtype)
    assert model.dtype is plain.dtype
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()  # tied
    with offloaded(model):
        assert same(answer(model, new_tokens=8), answer(plain, new_tokens=8))


LIMITED = """
import resource, sys, torch
torch.set_num_threads(1)
from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from tracekit.recorder.models import load_model

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

def peak_of(allowance, work):
    "What work takes at most, in bytes; the system lets it have so many."
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + allowance, unlimited[1]))
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
    before = status("VmRSS")
    try:
        work()
        return status("VmHWM") - before
    except Exception as error:
        print(error, file=sys.stderr)
        return -1
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)

def load(path, **options):
    offloaded(offload(path, plan_from_dict({"cache": {"capacity": "1/layer"}}), **options)).close()

mini, path = sys.argv[1:3]
load(mini)  # imports, and what torch keeps for itself
print(peak_of(70 * 10**6, lambda: load_model(path, "auto", "cpu")))
print(peak_of(70 * 10**6, lambda: load(path, host="disk", slabs=path + ".slabs")))
print(peak_of(140 * 10**6, lambda: load(path)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to reset the peak")
@in_parts
def test_a_model_larger_than_what_it_may_take_is_loaded(tmp_path: Path) -> None:
    """Peak resident memory, in a process of its own that the system also stops at an allowance: the whole model does
    not fit 70 MB, but written to disk a layer at a time it does; in memory it takes what its slabs do."""
    experts = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 4, "num_local_experts": 16}
    rest = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": 2048}
    path = tmp_path / "large"
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**experts, **rest)).to(torch.bfloat16)
    expert = 3 * 512 * 512 * 2
    slabs = 4 * 16 * expert
    dense = sum(p.nbytes for p in model.parameters()) - slabs
    assert slabs > 95e6 and dense < 11e6
    model.save_pretrained(path, max_shard_size="30MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((CHECKPOINTS / NAMES[0] / name).read_bytes())
    del model
    arguments = [str(CHECKPOINTS / NAMES[0]), str(path)]
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, timeout=240, cwd=root
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, disk, memory = map(int, done.stdout.split())
    assert whole == -1 and "memory" in done.stderr
    slack = dense + 4 * expert + 4 * expert + 8e6  # what is no expert, slots, one expert in parts, the allocator's own
    assert 0 < disk < slabs / 4 + slack, done.stderr[-2000:]
    assert 0 < memory < slabs + slack, done.stderr[-2000:]


def truncate(path: Path) -> None:
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        for shard in path.glob("*.safetensors"):
            tensors = load_file(shard)
            change(tensors)
            save_file(tensors, shard)

    return spoil


def shorten(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if name.endswith("experts.3.w1.weight"):
            tensors[name] = tensors[name][:-1].contiguous()


def as_integers(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if name.endswith("experts.3.w1.weight"):
            tensors[name] = tensors[name].to(torch.int32)


def without(end: str) -> Callable[[dict[str, Any]], None]:
    def drop(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(end)]:
            del tensors[name]

    return drop


def name_an_absent_file(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"]["more"] = "model-00099-of-00099.safetensors"
    index.write_text(json.dumps(entries))


@in_parts
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: sorted(path.glob("*.safetensors"))[1].unlink(), "is missing"),
        (truncate, "truncated or damaged"),
        (name_an_absent_file, "model-00099-of-00099.safetensors is missing"),
        (rewrite(shorten), r"experts.3.w1.weight as \[47, 32\], the other experts' are \[48, 32\]"),
        (rewrite(as_integers), "experts.3.w1.weight as I32"),
        (rewrite(without("layers.1.block_sparse_moe.experts.3.w1.weight")), r"has 7 of .*w1.* for the 8 experts"),
        (rewrite(without("layers.1.block_sparse_moe.experts.3.w2.weight")), r"has 7 of .*w2.* 1 are missing"),
        (rewrite(without("self_attn.q_proj.weight")), "lacks 3 of the model's weights, such as"),
        (rewrite(dict.clear), "hold 0 numbers: the two do not belong together"),
        (lambda path: (path / "model.safetensors.index.json").write_text("{"), "not JSON"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said_in_a_line(
    spoil: Callable[[Path], object],
    message: str,
    make_model: MakeModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model"
    make_model().save_pretrained(path, max_shard_size="60KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((CHECKPOINTS / NAMES[0] / name).read_bytes())
    spoil(path)
    for options in ({}, {"host": "disk", "slabs": tmp_path / "m.slabs"}):
        with pytest.raises(ModelError, match=message) as caught:
            offload(path, plan_of(), **options)  # type: ignore[call-overload]
        assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert run(["generate", str(path), "", "--prompts", "none"]) == 2
    capsys.readouterr()


@in_parts
def test_what_cannot_be_loaded_shard_by_shard_is_said_and_loaded_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    for file in (CHECKPOINTS / NAMES[0]).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (path / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    with offloaded(offload(path, plan_of(), say=said.append)) as state:
        assert state.store.bytes > 0
    assert len(said) == 1 and "is loaded whole: its weights are in a quantised format" in said[0]


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(PlanError, match="random experts lie in memory"):
        offload(CHECKPOINTS / NAMES[0], plan_of(), random_experts=1)
    with pytest.raises(ModelError, match="no model at"):
        offload("./nowhere", plan_of())
    layers = moe_layers(offload(CHECKPOINTS / NAMES[0], plan_of()))
    assert all(parameter.is_meta for layer in layers for parameter in layer.experts.parameters())


@in_parts
def test_with_an_older_transformers_models_are_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.runtime.storage import sharded_loading

    said: list[str] = []
    streamed = offload(CHECKPOINTS / NAMES[0], plan_of(), dtype="float32", say=said.append)
    assert said == []
    version = sharded_loading.metadata.version
    monkeypatch.setattr(
        sharded_loading.metadata, "version", lambda name: "5.17.0" if name == "transformers" else version(name)
    )
    whole = offload(CHECKPOINTS / NAMES[0], plan_of(), dtype="float32", say=said.append)
    assert len(said) == 1 and "is loaded whole: transformers 5.17.0 is installed" in said[0]
    with offloaded(streamed), offloaded(whole):
        assert same(answer(streamed, [1, 2, 3], 3), answer(whole, [1, 2, 3], 3))
