"""Memory is kept to the byte: what a plan takes is known beforehand, refused when too much, and never held twice."""

import gc
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from engine.plan.capacity import parse_memory
from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from experiments.cli.main import run
from tests.engine.runtime.models import FAMILIES, MakeModel, answer
from tests.helpers.thorough import THOROUGH
from tracekit.errors import CapacityError, HardwareError, ModelError, PlanError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from engine.plan.weights import WeightFormat  # noqa: E402  # needs torch
from engine.runtime.calibration.expansion import OneExpert  # noqa: E402
from engine.runtime.experts.launching import has_triton  # noqa: E402
from engine.runtime.memory import footprint  # noqa: E402
from engine.runtime.storage.quantise import quantise  # noqa: E402
from engine.runtime.storage.random_weights import random_slabs  # noqa: E402
from engine.runtime.storage.slab_layout import SLOT_ALIGNMENT, aligned, layout_of  # noqa: E402
from engine.runtime.storage.working_memory import PeakBytes, expansion_bytes, quantising_bytes  # noqa: E402
from engine.shapes.config import shape_of_config  # noqa: E402
from engine.shapes.load import Load, load_bytes  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from tracekit.recorder.encoding import continues  # noqa: E402
from tracekit.recorder.models import empty_model, load_config, load_model  # noqa: E402


@pytest.mark.parametrize("word", [None, "hqq-4bit-g16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_plan_needs_is_what_is_allocated(family: str, word: str | None, make_model: MakeModel) -> None:
    """Counted before loading, against the bytes of slots and of everything else that then stays on the device."""
    weights = {} if word is None else {"experts": word, "attention": word}
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}, "weights": weights, "prefetch": {"staging": 2}})
    empty = make_model(family).to("meta")
    need = footprint(empty, plan, quantising=True)
    model = offload(make_model(family), plan)
    with offloaded(model) as state:
        slots = 3 * len(state.layers) + 2
        assert state.pool.slots == slots
        assert state.pool.bytes == slots * need.slot == state.pool._buffer.nbytes
        assert need.slot == aligned(state.store.slab_bytes, SLOT_ALIGNMENT)
        kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta)
        assert need.rest == kept
        assert need.host == state.store.bytes
        assert need.device(slots) == state.pool.bytes + kept + need.working
        answer(model, new_tokens=2)


LOADS = [(400, 20, 1), (100, 60, 4), (30, 5, 1), (60, 200, 2)]


@pytest.mark.parametrize(("prompt", "new", "batch"), LOADS if THOROUGH > 1 else LOADS[::3])
@pytest.mark.parametrize("name", NAMES)
def test_what_sequences_take_is_what_they_were_to_take(name: str, prompt: int, new: int, batch: int) -> None:
    """Key-value cache and activations by formula, against all that torch allocates while the reference models answer.

    Within 3 % of themselves, and half a percent of the device's memory in all.
    """
    model, _ = load_model(CHECKPOINTS / name, "float32", "cpu")
    shape = shape_of_config(model.config.to_dict(), name)
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}})
    need = footprint(model, plan)
    model = offload(model, plan)
    with offloaded(model) as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        older = [found for found in gc.get_objects() if isinstance(found, torch.Tensor) and not found.is_meta]
        prompts = [[5 + 7 * index % 200 for index in range(prompt)] for _ in range(batch)]
        generation = continues(model)(model, prompts, max_new_tokens=new, stop=())
        with torch.inference_mode(), PeakBytes(*older) as measured:
            list(generation.passes())
        fixed = need.device(state.pool.slots)
    load = Load(prompt + new - 1, batch, prompt * batch, prompt)
    expected = sum(load_bytes(shape, load, WeightFormat.parse("fp32"), width=4))
    assert expected == pytest.approx(measured.peak, rel=0.03)
    assert fixed + expected == pytest.approx(fixed + measured.peak, rel=0.005)


def test_a_plan_for_a_context_keeps_room_for_it(make_model: MakeModel) -> None:
    tables: dict[str, Any] = {"cache": {"capacity": "2/layer"}}
    plain = footprint(make_model(), plan_from_dict(tables))
    serving = footprint(make_model(), plan_from_dict(tables | {"serve": {"context": 64, "batch": 2}}))
    kv = 2 * 64 * 2 * 3 * 2 * 8 * 2  # sequences, tokens, keys and values, layers, heads, values, bytes
    assert plain.serving == 0 and kv < serving.serving < 20 * kv
    assert serving.device(6) == plain.device(6) + serving.serving
    with pytest.raises(PlanError, match="keeps keys and values in the model's type, bf16"):
        footprint(make_model(), plan_from_dict(tables | {"serve": {"kv_cache": "q8_0"}}))


@pytest.mark.parametrize("room", [60_000, 90_000, 150_000, 200_000, 260_000])
def test_the_largest_capacity_named_fits_and_the_next_does_not(room: int, make_model: MakeModel) -> None:
    everything = plan_from_dict({"cache": {"capacity": "100%"}})
    need = footprint(make_model(), everything)
    assert need.device(3 * 8 + 4) > 260_000
    with pytest.raises(CapacityError, match=r"the largest that fits is (.*)|none fits") as caught:
        offload(make_model(), everything, memory=room)
    assert "\n" not in str(caught.value)
    largest = need.largest(room)
    if not largest:
        assert need.device(4 + 1) > room and "none fits" in str(caught.value)
        return
    assert str(caught.value).endswith(f"the largest that fits is {largest}")
    model = offload(make_model(), plan_from_dict({"cache": {"capacity": largest}}), memory=room)
    with offloaded(model) as state:
        assert need.rest + state.pool.bytes <= room
    number = int(largest.partition("/")[0])
    larger = largest.replace(str(number), str(number + 1))
    with pytest.raises(CapacityError):
        offload(make_model(), plan_from_dict({"cache": {"capacity": larger}}), memory=room)


def test_auto_takes_what_fits(make_model: MakeModel) -> None:
    plan = plan_from_dict({"cache": {"capacity": "auto"}})
    with offloaded(offload(make_model(), plan, memory=230_000)) as state:
        assert 1 <= state.spec.capacity[0] < 8
        assert state.pool.bytes < 230_000
    with offloaded(offload(make_model(), plan)) as state:  # this machine has room for all of it
        assert state.spec.capacity == (8, 8, 8)
    with pytest.raises(CapacityError, match="not even 4 staging buffers"):
        offload(make_model(), plan, memory=10_000)


def test_a_plan_that_cannot_fit_is_refused_before_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown by a directory without weights: what is refused is the capacity, not that they are missing."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((CHECKPOINTS / NAMES[0] / name).read_bytes())
    arguments = ["generate", str(tmp_path), "x", "--capacity", "8/layer", "--memory"]
    assert run([*arguments, "3MB"]) == 2
    error = capsys.readouterr().err
    assert "the largest that fits is 1/layer" in error and error.count("\n") == 1
    assert run([*arguments, "300MB"]) == 2
    assert "safetensors" in capsys.readouterr().err
    assert run(["generate", str(tmp_path), "x", "--capacity", "auto", "--memory", "1MB"]) == 2
    assert "not even 4 staging buffers" in capsys.readouterr().err


def test_auto_is_for_the_engine_only() -> None:
    plan = plan_from_dict({"cache": {"capacity": "auto"}})
    with pytest.raises(CapacityError, match="here give 4/layer"):
        plan.capacity.groups([8], 8, [100])


@pytest.mark.parametrize("text", ["8", "25%", "4/layer", "1GiB/layer", "0GiB", "auto"])
def test_an_amount_of_memory_is_in_bytes(text: str) -> None:
    with pytest.raises(PlanError, match="no amount of bytes"):
        parse_memory(text)
    assert parse_memory("2MiB") == 2 << 20


PEAK = """
import sys, torch
torch.set_num_threads(1)
from engine.plan.capacity import parse_memory
from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from engine.runtime.storage import quantise
from tracekit.recorder.models import load_model

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

weights = {"experts": sys.argv[3]} if sys.argv[3] != "none" else {}
disk = {"host": "disk", "slabs": sys.argv[2] + ".slabs"} if sys.argv[4] == "disk" else {}
quantise.quantizer_of_hqq() if weights else None
offload(load_model(sys.argv[1], "auto", "cpu")[0], plan_from_dict({"cache": {"capacity": "1/layer"}}))
before = status("RssAnon")
model, _ = load_model(sys.argv[2], "auto", "cpu")
loaded = status("RssAnon") - before
open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
before = status("VmRSS")
offload(model, plan_from_dict({"cache": {"capacity": "1/layer"}, "weights": weights}), **disk)
print(loaded, status("VmHWM") - before, status("VmRSS") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to reset the peak")
@pytest.mark.parametrize(("word", "host"), [("none", "memory"), ("hqq-8bit", "disk")])
def test_there_are_never_two_copies_of_a_model(word: str, host: str, tmp_path: Path) -> None:
    """Peak resident memory of loading and offloading, of a model of some 40 MB, in a process of its own."""
    if word != "none":
        pytest.importorskip("hqq.core.quantize")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_local_experts": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": 2048}
    folder = tmp_path / "model"
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).to(torch.bfloat16)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert 30e6 < size < 50e6
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CHECKPOINTS / NAMES[0] / name).read_bytes())
    arguments = [sys.executable, "-c", PEAK, str(CHECKPOINTS / NAMES[0]), str(folder), word, host]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    loaded, peak, after = map(int, done.stdout.split())
    assert loaded < 1.4 * size, "loading held more than one copy"
    assert peak < 0.6 * size, "offloading held a second copy"
    if word != "none" or host == "disk":
        assert after < 0, "what was moved out of the model was not given back"


@pytest.mark.parametrize("host", ["memory", "disk"])
def test_a_checkpoint_is_held_to_its_budget_before_it_is_read(host: str, tmp_path: Path) -> None:
    """To the byte, wherever experts lie: what is needed is enough, a byte less is refused, weights or no weights."""
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}})
    mini = CHECKPOINTS / NAMES[0]
    config = load_config(mini)
    need = footprint(empty_model(config, mini, config.dtype), plan)
    slots = 3 * need.layers + need.staging
    placed: dict[str, Any] = {"host": host, "slabs": tmp_path / "m.slabs" if host == "disk" else None}
    served = offload(mini, plan, memory=need.device(slots), **placed)
    with offloaded(served) as state:
        kept = sum(tensor.nbytes for tensor in (*served.parameters(), *served.buffers()) if not tensor.is_meta)
        assert kept + state.pool._buffer.nbytes == need.device(slots)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((mini / "config.json").read_bytes())
    with pytest.raises(CapacityError, match="the largest that fits is 2/layer"):
        offload(bare, plan, memory=need.device(slots) - 1, **placed)
    with pytest.raises(ModelError, match=r"model.safetensors"):
        offload(bare, plan, memory=need.device(slots), **(placed | {"host": "memory", "slabs": None}))
    auto = plan_from_dict({"cache": {"capacity": "auto"}})
    room = need.device(slots) * 10 // 9
    with offloaded(offload(mini, auto, memory=room, **placed)) as state:
        assert kept + state.pool.bytes <= room


def test_auto_works_in_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, prompts, mini = tmp_path / "p.toml", tmp_path / "p.jsonl", str(CHECKPOINTS / NAMES[0])
    plan.write_text('cache.capacity = "auto"\n')
    prompts.write_text('{"id": "a", "prompt": "The list"}\n')
    short = ["--max-new-tokens", "3", "--json", "--device", "cpu"]
    recorded = ["record", mini, "--prompts", str(prompts), "--output", str(tmp_path / "t.trace")]
    checked = ["validate", mini, "--prompts", str(prompts), "--hardware", "t4", "--threshold", "1e9"]
    for command in (["generate", mini, "The list"], recorded, checked):
        assert run([*command, "--plan", str(plan), *short]) == 0, capsys.readouterr().err
        capsys.readouterr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("source", ["checkpoint", "model"])
def test_the_allocators_peak_is_what_the_plan_says(source: str) -> None:
    """On a GPU, while loading; the allocator rounds each tensor up to 512 bytes."""
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}})
    mini = CHECKPOINTS / NAMES[0]
    model = load_model(mini)[0]
    need = footprint(model, plan)
    tensors = len(list(model.parameters())) + len(list(model.buffers()))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    served = offload(mini if source == "checkpoint" else model, plan, device="cuda")
    with offloaded(served) as state:
        peak = torch.cuda.max_memory_allocated() - before
        assert peak <= need.device(state.pool.slots) + 512 * (tensors + 1)


@pytest.mark.parametrize("word", ["hqq-8bit", "hqq-4bit-g64", "hqq-3bit", "hqq-2bit-g16-m128"])
def test_what_expanding_takes_is_counted_whole(word: str) -> None:
    """Before, the expanded expert alone was: a half, or less, of what it takes to expand it."""
    experts = OneExpert(512, 256, torch.bfloat16)
    layout = layout_of(experts, word)
    slab = torch.empty(layout.bytes, dtype=torch.uint8)
    random_slabs(layout, slab[None], seed=0)
    with torch.inference_mode(), PeakBytes(slab) as counted:
        weights = layout.weights(layout.views(slab))
    assert expansion_bytes(layout, torch.device("cpu")) == counted.peak
    if has_triton():  # one kernel for each matrix: nothing beside what it writes
        assert expansion_bytes(layout, torch.device("cuda")) == sum(value.nbytes for value in weights.values())
    alone = sum(weight.nbytes for weight in weights.values())
    assert counted.peak > 1.5 * alone
    largest = max(matrix.rows * matrix.cols for matrix in layout.matrices)
    assert counted.peak >= alone + 4 * largest  # a matrix stands in single precision beside the expanded expert


@pytest.mark.parametrize("word", ["hqq-4bit-g64", "hqq-2bit-g16-m128"])
def test_what_quantising_takes_is_foreseen_from_a_few_rows(word: str) -> None:
    pytest.importorskip("hqq.core.quantize")
    matrix = torch.randn(1024, 512, dtype=torch.bfloat16)
    with PeakBytes(matrix) as counted:
        quantise(matrix, WeightFormat.parse(word))
    foreseen = quantising_bytes([(1024, 512), (64, 64)], WeightFormat.parse(word), torch.bfloat16)
    assert foreseen == pytest.approx(counted.peak + matrix.nbytes, rel=0.02)


def test_no_room_to_quantise_is_one_line(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hqq.core.quantize")

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("engine.runtime.storage.quantise.quantise", full)
    plan = plan_from_dict({"cache": {"capacity": "1/layer"}, "weights": {"experts": "hqq-4bit-g16"}})
    with pytest.raises(
        HardwareError, match=r"no room to quantise a matrix of .* give the cache less capacity"
    ) as caught:
        offload(make_model(), plan)
    assert "\n" not in str(caught.value)
