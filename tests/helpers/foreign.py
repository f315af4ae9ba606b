"""Sound small files in every foreign format: `SOURCES`, of format and bytes, all of one routing, `CHOSEN`."""

import base64
import gzip
import io
import json
import struct

import numpy as np
import polars as pl

from tests.helpers.traces import random_experts

CHOSEN = random_experts(np.random.default_rng(0), 5, 2, 8, 2)


def array_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, CHOSEN)
    else:
        np.savez_compressed(buffer, **{kind: CHOSEN.astype(np.int64)})
    return buffer.getvalue()


def response(routed: object) -> dict[str, object]:
    return {"choices": [{"routed_experts": routed}], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}


SGLANG = {
    "meta_info": {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "routed_experts": base64.b64encode(CHOSEN.astype("<i4").tobytes()).decode(),
    }
}
PAIRS = [(token, layer, CHOSEN[token, layer].tolist()) for token in range(5) for layer in range(2)]
ROUTE = """\
# route_trace v1
# model=tiny arch=tiny n_layer=2 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=100
# layer=1 expert_bytes=100
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
""" + "".join(
    f"0,{int(token > 2)},{token},{layer},{slot},{ids[slot]},0.5,0,0\n" for token, layer, ids in PAIRS for slot in (0, 1)
)
BINARY = struct.pack("<4s2i", b"MBLT", 1, 8)
BINARY += b"".join(struct.pack("<5i", layer, 2, 1, *ids) for _, layer, ids in PAIRS)
COLUMNS = io.BytesIO()
pl.DataFrame([{"token": token, "layer": layer, "ids": ids} for token, layer, ids in PAIRS]).write_parquet(COLUMNS)
ROUTER_DATA = [
    {f"token_{token}": {f"layer_{layer}": {"selected_experts": CHOSEN[token, layer].tolist()} for layer in range(2)}}
    for token in range(5)
]
SOURCES: list[tuple[str, bytes]] = [
    ("npz", array_bytes("experts")),
    ("vllm", array_bytes("npy")),
    ("vllm", array_bytes("routed_experts")),
    ("vllm", json.dumps(response(CHOSEN.tolist())).encode()),
    ("vllm", json.dumps(response(base64.b64encode(array_bytes("npy")).decode())).encode()),
    ("sglang", json.dumps(SGLANG).encode()),
    ("jsonl", "".join(json.dumps({"token": t, "layer": n, "ids": ids}) + "\n" for t, n, ids in PAIRS).encode()),
    ("llama-csv", ("layer,expert\n" + "".join(f"{n},{e}\n" for _, n, ids in PAIRS for e in ids)).encode()),
    (
        "llama-csv",
        (
            "phase,token,layer,rank,expert\n"
            + "".join(f"decode,{t},{n},{i},{e}\n" for t, n, ids in PAIRS for i, e in enumerate(ids))
        ).encode(),
    ),
    (
        "deepseek-csv",
        (
            "Layer ID,Batch Number,Token,Activated Expert IDs\n"
            + "".join(f'{n},0,t,"{CHOSEN[t, n].tolist()}"\n' for n in range(2) for t in range(5))
        ).encode(),
    ),
    ("bigmoe-csv", ROUTE.encode()),
    ("mbolt", BINARY),
    ("parquet", COLUMNS.getvalue()),
    ("router-data", json.dumps({"router_data": ROUTER_DATA}).encode()),
    ("jsonl", gzip.compress("".join(json.dumps({"layer": n, "ids": ids}) + "\n" for _, n, ids in PAIRS).encode())),
    ("vllm", b"data: " + json.dumps(response(CHOSEN.tolist())).encode() + b"\n\ndata: [DONE]\n"),
]
