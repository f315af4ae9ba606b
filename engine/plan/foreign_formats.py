"""Formats in which people store experts and this project's engine does not: for replays, sizing and buying.

Each word's arrays are those of the files it is found in, byte for byte:

- ggml's block formats (`q4_k`, `q8_0`, `iq4_xs`, `mxfp4`, ...): a row is cut into blocks of 32 or 256 values, each with
  its scales inside (llama.cpp, `ggml/src/ggml-common.h`, structs `block_*`). What a GGUF's name calls `Q4_K_M` is a
  mixture of several of these words.
- `mxfp4` elsewhere is the same: 32 values of 4 bits share one 8-bit exponent (OCP Microscaling Formats 1.0, section
  5.2); ggml keeps the exponent inside the block, 17 bytes in all.
- `nvfp4`: 16 values of 4 bits share one fp8 scale, and a matrix one fp32 scale (NVIDIA, "Introducing NVFP4").
- `awq-4bit`, `gptq-4bit` (`-g<group>`, 128 unless given): `group` values down a column of inputs share an fp16 scale
  and a 4-bit zero; gptq has a 32-bit group index per input, too (AutoAWQ and AutoGPTQ: `qweight`, `qzeros`, `scales`).
- `fp8`: one byte a value, one fp32 scale a matrix; `fp8-b128` has one per 128 x 128 tile (DeepSeek-V3, arXiv
  2412.19437, section 3.3.2).
"""

import re

from engine.plan.stored_tensor import StoredTensor

BLOCKS = {  # word -> values and bytes of one block
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
    "iq1_s": (256, 50), "iq1_m": (256, 56), "iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq2_s": (256, 82),
    "iq3_xxs": (256, 98), "iq3_s": (256, 110), "iq4_nl": (32, 18), "iq4_xs": (256, 136),
    "tq1_0": (256, 54), "tq2_0": (256, 66),
    "mxfp4": (32, 17), "nvfp4": (16, 9),
}  # fmt: skip
_COLUMNS = re.compile(r"(awq|gptq)-4bit(?:-g(\d{1,5}))?")
_TILE = 128
WORDS = (*BLOCKS, "awq-4bit", "gptq-4bit", "fp8", "fp8-b128")


def canonical(word: str) -> str:
    """The word with its group spelled out, "" if it is none of these."""
    if word in BLOCKS or word in ("fp8", "fp8-b128"):
        return word
    match = _COLUMNS.fullmatch(word)
    return "" if match is None or match[2] in ("0",) else f"{match[1]}-4bit-g{int(match[2] or 128)}"


def bits(word: str) -> int:
    """Bits of one code of a canonical word; as many as a value takes where codes and scales cannot be told apart."""
    if word in BLOCKS:
        values, size = BLOCKS[word]
        return 4 if word.endswith("fp4") else 8 * size // values
    return 8 if word.startswith("fp8") else 4


def arrays(word: str, rows: int, cols: int) -> tuple[StoredTensor, ...]:
    """The arrays that store a [rows, cols] matrix (outputs, inputs). ValueError, saying why, when it cannot be cut."""
    if word in BLOCKS:
        values, size = BLOCKS[word]
        if cols % values:
            raise ValueError(f"its rows of {cols} values are no multiple of the block of {values}")
        scale = (StoredTensor("scale", "float32", (1,)),) if word == "nvfp4" else ()
        return StoredTensor("blocks", "uint8", (rows, cols // values, size)), *scale
    if word.startswith("fp8"):
        tiles = (-(-rows // _TILE), -(-cols // _TILE)) if word == "fp8-b128" else (1,)
        return StoredTensor("weight", "uint8", (rows, cols)), StoredTensor("scale", "float32", tiles)
    method, group = word.split("-4bit-g")
    if cols % int(group) or rows % 8:
        raise ValueError(f"its {cols} inputs are no multiple of the group of {group}, or {rows} outputs none of 8")
    groups = cols // int(group)
    index = (StoredTensor("g_idx", "int32", (cols,)),) if method == "gptq" else ()
    return (
        StoredTensor("qweight", "int32", (cols // 8, rows)),
        StoredTensor("qzeros", "int32", (groups, rows // 8)),
        StoredTensor("scales", "float16", (groups, rows)),
        *index,
    )
