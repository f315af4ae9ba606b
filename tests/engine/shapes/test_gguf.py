"""GGUF headers: what the gguf package writes is read as it reads it, and means the shape of the same configuration."""

import re
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from engine.shapes import ModelShape, load_shape
from engine.shapes.gguf import read_gguf
from engine.shapes.gguf_shape import _KEYS, _KINDS, shape_of_gguf, stored_parts
from tracekit.errors import ShapeError


@pytest.fixture(scope="module")
def gguf() -> Any:
    return pytest.importorskip("gguf", reason="writes the files with the gguf package")


def write(
    gguf: Any, path: Path, arch: str, keys: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], str]]
) -> Path:
    """A GGUF of the given keys, with tensors (rows, columns) of a type, all zeros."""
    numpy = import_module("numpy")
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        name = key if "." in key and key.split(".")[0] in ("tokenizer", "split") else f"{arch}.{key}"
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(name, value)
    for name, (sizes, kind) in tensors.items():
        word = gguf.GGMLQuantizationType[kind]
        block, size = gguf.constants.GGML_QUANT_SIZES[word]
        data = numpy.zeros((*sizes[:-1], sizes[-1] // block * size), numpy.uint8)
        writer.add_tensor(name, data, raw_dtype=word)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


QWEN = {
    "block_count": 3, "embedding_length": 256, "attention.head_count": 4, "attention.head_count_kv": 2,
    "attention.key_length": 64, "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 512,
    "feed_forward_length": 1024, "tokenizer.ggml.tokens": [str(index) for index in range(99)],
}  # fmt: skip


def experts(layers: int, kind: str = "Q4_K") -> dict[str, tuple[tuple[int, ...], str]]:
    wide = {f"blk.{i}.ffn_{name}_exps.weight": ((8, 512, 256), kind) for i in range(layers) for name in ("gate", "up")}
    down = {f"blk.{i}.ffn_down_exps.weight": ((8, 256, 512), "Q6_K") for i in range(layers)}
    return wide | down | {"output.weight": ((99, 256), "Q8_0"), "blk.0.attn_norm.weight": ((256,), "F32")}


def test_a_header_means_a_shape_and_its_tensors_sizes(gguf: Any, tmp_path: Path) -> None:
    path = write(gguf, tmp_path / "m.gguf", "qwen3moe", QWEN, experts(3))
    header = read_gguf(path)
    reader = gguf.GGUFReader(path)
    assert [(t.name, [*map(int, t.shape)], t.tensor_type.name.lower(), int(t.n_bytes)) for t in reader.tensors] == [
        (t.name, [*t.sizes], t.type, t.bytes) for t in header.tensors
    ]
    shape = load_shape(path)
    assert (shape.layers, shape.experts, shape.top_k, shape.vocab_size) == (3, 8, 2, 99)
    assert (shape.query_key_norm, shape.tied_embeddings, shape.kv_heads, shape.head_dim) == ("head", False, 2, 64)
    parts = stored_parts(header)
    assert parts.experts == 3 * 8 * 512 * 256 * (2 * 144 + 210) // 256
    assert parts.rest == 99 * 256 * 34 // 32 + 4 * 256 and list(parts.rest_types) == ["q8_0", "f32"]


def test_only_the_header_is_read(gguf: Any, tmp_path: Path) -> None:
    """A download that has only begun is enough; one that ends inside the header is said to be cut short."""
    path = write(gguf, tmp_path / "m.gguf", "qwen3moe", QWEN, experts(3))
    whole, data = read_gguf(path), path.read_bytes()
    end = data.index(b"blk.0.attn_norm.weight") + 22 + 4 + 8 + 4 + 8
    path.write_bytes(data[:end])
    assert read_gguf(path) == whole
    for cut in [*range(0, end, 997), end - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(ShapeError, match="cut short"):
            read_gguf(path)


def test_a_split_model_is_one(gguf: Any, tmp_path: Path) -> None:
    one = write(gguf, tmp_path / "m-00001-of-00002.gguf", "qwen3moe", QWEN, experts(2))
    assert read_gguf(one).missing == ("m-00002-of-00002.gguf",)
    last = {name: size for name, size in experts(3).items() if name.startswith("blk.2")}
    two = write(gguf, tmp_path / "m-00002-of-00002.gguf", "qwen3moe", {}, last)
    assert sorted(read_gguf(one).tensors) == sorted(read_gguf(two).tensors)
    assert len(read_gguf(one).tensors) == len(experts(3)) and not read_gguf(one).missing
    assert shape_of_gguf(read_gguf(two), "x") == shape_of_gguf(read_gguf(one), "x")


def test_the_keys_are_ggufs(gguf: Any) -> None:
    known = {
        value.removeprefix("{arch}.")
        for group in vars(gguf.Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str)
    }
    assert set(_KEYS.values()) <= known


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3", "qwen3-next-80b-a3b"])
def test_a_shipped_shape_comes_back(gguf: Any, tmp_path: Path, name: str) -> None:
    """What llama.cpp's converter writes of each model's configuration, read back: the same parameters and cache."""
    shape = load_shape(name)
    keys: dict[str, Any] = {
        "block_count": shape.layers, "embedding_length": shape.hidden_size, "vocab_size": shape.vocab_size,
        "attention.head_count": shape.heads, "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim, "expert_count": shape.experts, "expert_used_count": shape.top_k,
        "expert_feed_forward_length": shape.moe_intermediate_size, "feed_forward_length": shape.moe_intermediate_size,
    }  # fmt: skip
    arch = {"mixtral-8x7b": "llama", "gpt-oss-20b": "gpt-oss", "deepseek-v3": "deepseek2"}.get(
        name, "qwen3next" if "next" in name else "qwen3moe"
    )
    if arch == "gpt-oss":
        keys["attention.sliding_window"] = 128
    if shape.mla is not None:
        keys |= {
            "feed_forward_length": shape.dense_intermediate_size, "leading_dense_block_count": len(shape.dense_layers),
            "expert_shared_count": 1, "attention.q_lora_rank": shape.mla.query_rank, "expert_gating_func": 2,
            "attention.kv_lora_rank": shape.mla.key_value_rank, "rope.dimension_count": shape.mla.rope_head_dim,
            "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
            "attention.key_length_mla": shape.head_dim, "attention.value_length_mla": shape.mla.value_head_dim,
        }  # fmt: skip
    if arch == "qwen3next":
        keys |= {
            "expert_shared_feed_forward_length": 512, "full_attention_interval": 4, "ssm.conv_kernel": 4,
            "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096,
        }  # fmt: skip
    tensors = {"output.weight": ((32, 32), "F16")}
    found = load_shape(write(gguf, tmp_path / "m.gguf", arch, keys, tensors))
    changed = {field: getattr(found, field) for field in ("name", "source")}
    assert _fields(found) | changed == _fields(shape) | changed


def _fields(shape: ModelShape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__struct_fields__}


def header(*parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<I", 3) + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short"),
        (b"PK\x03\x04" + bytes(40), "no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not known"),
        (header(struct.pack("<QQ", 1 << 40, 0)), "tensors are more than"),
        (header(struct.pack("<QQ", 0, 1 << 62)), "pairs are more than"),
        (header(struct.pack("<QQ", 0, 1), struct.pack("<Q", 1 << 60)), "bytes of a text are more than"),
        (header(struct.pack("<QQ", 0, 1), struct.pack("<Q", 1), b"a", struct.pack("<I", 77)), "of type 77"),
        (
            header(struct.pack("<QQ", 0, 1), struct.pack("<Q", 1), b"a", struct.pack("<IIQ", 9, 0, 1 << 50)),
            "items of a list",
        ),
        (header(struct.pack("<QQ", 1, 0), struct.pack("<Q", 1), b"a", struct.pack("<IQIQ", 1, 4, 99, 0)), "type 99"),
        (
            header(struct.pack("<QQ", 1, 0), struct.pack("<Q", 1), b"a", struct.pack("<IQIQ", 1, 4, 12, 0)),
            "impossible sizes",
        ),
        (header(struct.pack("<QQ", 0, 0)), "architecture 'None' is none whose"),
    ],
)
def test_a_damaged_or_hostile_header_is_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ShapeError, match=re.escape(says)) as caught:
        load_shape(path)
    assert "\n" not in str(caught.value)


def test_a_model_without_experts_is_refused(gguf: Any, tmp_path: Path) -> None:
    path = write(gguf, tmp_path / "m.gguf", "llama", {"block_count": 2}, {})
    with pytest.raises(ShapeError, match="without experts"):
        load_shape(path)


@pytest.mark.parametrize("architecture", sorted(_KINDS))
def test_a_header_that_says_nothing_of_its_model_is_one_line(gguf: Any, tmp_path: Path, architecture: str) -> None:
    path = write(gguf, tmp_path / "m.gguf", architecture, {"expert_count": 8, "expert_shared_count": 1}, {})
    with pytest.raises(ShapeError, match="lacks num_hidden_layers"):
        load_shape(path)
