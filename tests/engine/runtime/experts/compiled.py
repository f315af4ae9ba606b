"""Compiles every grouped kernel for a GPU that need not be there, and prints what of its code matters, as JSON."""

import inspect
import json
import re
import sys

import torch
import triton
import triton.language as tl
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.runtime.experts import grouped, hqq_kernels
from engine.runtime.experts import grouped_kernels as kernels
from engine.runtime.experts.stacked import shape_of
from engine.runtime.storage.slab_layout import layout_of

HIDDEN, INNER = 2048, 768
POINTERS = dict.fromkeys(("inner", "hidden", "out", "target"), "*bf16") | {
    **dict.fromkeys(("matrices", "biases", "packed"), "*u8"),
    **dict.fromkeys(("parts", "factors"), "*fp32"),
    **dict.fromkeys(("scale", "scale_scale", "scale_zero", "zero", "zero_scale", "zero_zero"), "*fp16"),
    "table": "*i32",
}


class Module(nn.Module):
    """Two gated experts of Qwen3-30B-A3B's size, without memory."""

    num_experts, is_transposed, has_gate, is_concatenated = 2, False, True, True

    def __init__(self) -> None:
        super().__init__()
        for name, size in (("gate_up_proj", (2, 2 * INNER, HIDDEN)), ("down_proj", (2, HIDDEN, INNER))):
            tensor = torch.empty(size, device="meta", dtype=torch.bfloat16)
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def _apply_gate(self, outputs: torch.Tensor) -> torch.Tensor:
        gate, up = outputs.chunk(2, -1)
        return nn.functional.silu(gate) * up


def main(word: str | None, capability: int) -> None:
    module = Module()
    shape = shape_of(module, layout_of(module, word))
    first, second = shape.first, shape.second
    constants = {
        **{"GATE": first.matrices[0], "UP": first.matrices[1], "DOWN": second.matrices[0]},
        **{"ACTIVATION": shape.activation, "BIAS": first.bias, "BIAS_DTYPE": tl.float16, "WIDE": False},
        **{"INNER": INNER, "HIDDEN": HIDDEN, "SPREAD": first.spread, "M": grouped.FEW, "N": grouped.N, "K": grouped.K},
    }
    expanding = {"VALUES": INNER * HIDDEN, "BITS": 4, "GROUP": 64, "WORDS": INNER * HIDDEN // 128, "META": 0}
    expanding |= {"PARTS": 2, "PLACES": 2, "BLOCK": 512}
    found = {}
    asked = [(kernel, constants) for kernel in (kernels.first, kernels.second, kernels.second_of_token, kernels.added)]
    for kernel, values in [*asked, (hqq_kernels.expand, expanding)]:
        names = list(inspect.signature(kernel.fn).parameters)
        given = {
            name: tuple(values[name]) if isinstance(values[name], tuple) else values[name]
            for name in names
            if name.isupper()
        }
        signature = {name: "constexpr" if name.isupper() else POINTERS.get(name, "i32") for name in names}
        aligned = [at for at, name in enumerate(names) if name in POINTERS or name.endswith("stride")]
        source = ASTSource(kernel, signature, given, {(at,): [["tt.divisibility", 16]] for at in aligned})
        target = GPUTarget("cuda", capability, 32)
        code = triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]
        patterns = {"mma": r"\bmma\.", "atomics": r"\b(atom|red)\.", "fma": r"\bfma\.rn\.f32"}
        patterns |= {"wide copies": r"cp\.async\.c[ag]\.shared", "bytes": r"ld\.global\.b8"}
        found[kernel.fn.__name__] = {name: len(re.findall(pattern, code)) for name, pattern in patterns.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1] or None, int(sys.argv[2]))
