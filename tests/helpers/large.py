"""Files of tens of megabytes in every foreign format, as small as their formats allow for what they hold."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tests.helpers.traces import random_experts

LAYERS, EXPERTS, TOP_K = 16, 8, 2
ASKED = '"id":"cmpl-{:012}","object":"text_completion","created":1700000000,"model":"mixtral-8x7b",'
"""What engines say in each response or event besides."""


def chosen(tokens: int, layers: int = LAYERS, top_k: int = TOP_K) -> NDArray[np.uint16]:
    """Choices [tokens, layers, k]."""
    return random_experts(np.random.default_rng(0), tokens, layers, EXPERTS, top_k)


def rows(tokens: int) -> Iterator[tuple[int, int, list[int]]]:
    """Token, layer and ids, in the order in which engines log them."""
    for token, of_token in enumerate(chosen(tokens).tolist()):
        for layer, ids in enumerate(of_token):
            yield token, layer, ids


def jsonl(path: Path, tokens: int, line: str = '{{"token":{},"layer":{},"ids":{}}}\n') -> None:
    with path.open("w") as file:
        file.writelines(line.format(token, layer, str(ids).replace(" ", "")) for token, layer, ids in rows(tokens))


def bigmoe_csv(path: Path, tokens: int) -> None:
    head = f"# route_trace v1\n# model=m arch=a n_layer={LAYERS} n_expert={EXPERTS} n_expert_used={TOP_K}\n"
    head += "".join(f"# layer={layer} expert_bytes=100\n" for layer in range(LAYERS))
    with path.open("w") as file:
        file.write(head + "turn,phase,step,layer,slot,expert,weight\n")
        file.writelines(
            f"0,1,{token},{layer},{slot},{expert},.5\n"
            for token, layer, ids in rows(tokens)
            for slot, expert in enumerate(ids)
        )


def llama_csv(path: Path, tokens: int) -> None:
    with path.open("w") as file:
        file.write("layer,expert\n")
        file.writelines(f"{layer},{expert}\n" for _, layer, ids in rows(tokens) for expert in ids)


def llama_ranked_csv(path: Path, tokens: int) -> None:
    with path.open("w") as file:
        file.write("phase,token,layer,rank,expert\n")
        file.writelines(
            f"decode,{token},{layer},{rank},{expert}\n"
            for token, layer, ids in rows(tokens)
            for rank, expert in enumerate(ids)
        )


def deepseek_csv(path: Path, tokens: int) -> None:
    routed = chosen(tokens).tolist()
    with path.open("w") as file:
        file.write("Layer ID,Batch Number,Token,Activated Expert IDs\n")
        file.writelines(f'{layer},0,t,"{routed[token][layer]}"\n' for layer in range(LAYERS) for token in range(tokens))


def router_data(path: Path, tokens: int) -> None:
    with path.open("w") as file:
        file.write('{"router_data":[')
        for token, of_token in enumerate(chosen(tokens).tolist()):
            layers = {f"layer_{layer}": {"selected_experts": ids} for layer, ids in enumerate(of_token)}
            file.write("," * (token > 0) + json.dumps({f"token_{token}": layers}, separators=(",", ":")))
        file.write("]}")


def vllm_nested(path: Path, tokens: int) -> None:
    """One response with nested lists."""
    routed = json.dumps(chosen(tokens).tolist(), separators=(",", ":"))
    path.write_text(f'{{"choices":[{{"routed_experts":{routed}}}],"usage":{{"prompt_tokens":3}}}}')


def vllm_small(path: Path, tokens: int) -> None:
    """Many short requests, a line each."""
    routed = chosen(tokens).tolist()
    with path.open("w") as file:
        for first in range(0, tokens - 1, 2):
            part = json.dumps(routed[first : first + 2], separators=(",", ":"))
            asked = ASKED.format(first)
            file.write(f'{{{asked}"choices":[{{"routed_experts":{part}}}],"usage":{{"prompt_tokens":1}}}}\n')


def vllm_base64(path: Path, tokens: int) -> None:
    """Responses with .npy files inside, a line each."""
    with path.open("w") as file:
        for part in np.array_split(chosen(tokens).astype(np.uint8), 16):
            buffer = io.BytesIO()
            np.save(buffer, part)
            text = base64.b64encode(buffer.getvalue()).decode()
            file.write(json.dumps({"choices": [{"routed_experts": text}], "usage": {"prompt_tokens": 3}}) + "\n")


def vllm_events(path: Path, tokens: int) -> None:
    """Server-sent events, of many responses."""
    routed = chosen(tokens).tolist()
    with path.open("w") as file:
        for first in range(0, tokens - 1, 2):
            asked, part = ASKED.format(first), json.dumps(routed[first : first + 2], separators=(",", ":"))
            for token in range(3):
                file.write(f'data: {{{asked}"choices":[{{"index":0,"text":"a","token_ids":[{token}]}}]}}\n\n')
            file.write(f'data: {{{asked}"choices":[{{"index":0,"routed_experts":{part}}}]}}\n\n')


def sglang(path: Path, tokens: int) -> None:
    """Responses with base64 of 32-bit ids, a line each."""
    with path.open("w") as file:
        for part in np.array_split(chosen(tokens).astype("<i4"), 16):
            meta: dict[str, object] = {"prompt_tokens": 3, "completion_tokens": len(part) - 2}
            meta["routed_experts"] = base64.b64encode(part.tobytes()).decode()
            file.write(json.dumps({"meta_info": meta}) + "\n")


def mbolt(path: Path, tokens: int) -> None:
    routed = chosen(tokens).astype("<i4")
    header = np.array([[[layer, TOP_K, 1] for layer in range(LAYERS)]], "<i4")
    whole = np.concatenate([np.broadcast_to(header, (tokens, LAYERS, 3)), routed], axis=2)
    path.write_bytes(struct.pack("<4s2i", b"MBLT", 1, EXPERTS) + whole.tobytes())


def npz(path: Path, tokens: int) -> None:
    np.savez_compressed(path, experts=chosen(tokens).astype(np.int64))


def npy(path: Path, tokens: int) -> None:
    with path.open("wb") as file:
        np.save(file, chosen(tokens).astype(np.int32))


def parquet(path: Path, tokens: int) -> None:
    routed = chosen(tokens).reshape(-1, TOP_K)
    count = len(routed)
    pl.DataFrame(
        {
            "token": np.arange(count, dtype=np.int32) // LAYERS,
            "layer": (np.arange(count) % LAYERS).astype(np.uint16),
            "ids": pl.Series(routed, dtype=pl.Array(pl.UInt16, TOP_K)).arr.to_list(),
        }
    ).write_parquet(path)
