"""Published rows of engines that copy some misses and compute others on the host: what each leaves open."""

from experiments.research.league.entries import Entry, Source

HOST_COMPUTES = (
    "what of a visit's misses the host computes, and how fast: at most so many experts are admitted a step, the others "
    "never copied; no hit ratio is stated for the cache that ran"
)
PINNED = (
    "how many lookups the pinned experts serve, and how fast the host computes the others beside them: nothing is "
    "copied while it runs"
)
NO_HITS = "the hit ratio, or the routing: only slots and tokens/s are stated"


def left_open() -> Source:
    """Rows without an answer."""
    llama, fork, paddock = "2x RTX 3090", "RTX 3060", "2x RTX 6000 Ada"
    rows = (
        (llama, "llama.cpp #27861, without a cache", 18.4, HOST_COMPUTES),
        (llama, "llama.cpp #27861, 48 slots a layer, two admitted a step", 24.2, HOST_COMPUTES),
        (fork, "thecodacus/llama.cpp #5, Qwen3.6-35B-A3B, without a cache", 42.31, PINNED),
        (fork, "thecodacus/llama.cpp #5, Qwen3.6-35B-A3B, 124 pinned a layer", 51.27, PINNED),
        (fork, "thecodacus/llama.cpp #5, GLM-4.7-Flash, without a cache", 32.09, PINNED),
        (fork, "thecodacus/llama.cpp #5, GLM-4.7-Flash, 40 pinned a layer", 46.28, PINNED),
        ("not stated", "vLLM #37190, Nemotron-Cascade-2-30B-A3B, 8 slots a layer", 15.6, NO_HITS),
        ("not stated", "vLLM #37190, Gemma-4-26B-A4B, 8 slots a layer", 14.8, NO_HITS),
        (
            paddock,
            "FreeToken #231, Qwen3.8-Flash-Next, 37 % resident, 6 to 8 % missing",
            58.0,
            "a second row to fit on",
        ),
    )
    return Source(
        name="left-open",
        title="Expert caches of llama.cpp, vLLM and FreeToken",
        origin="pull requests of ggml-org/llama.cpp, thecodacus/llama.cpp, vllm-project/vllm and FlashML-org/FreeToken",
        unit="tokens/s",
        decimals=2,
        fits=["nothing: each lacks what a fit needs"],
        assumed="Stated well enough to be named, not to be foreseen.",
        entries=[
            Entry(machine=machine, row=row, kind="predicted", published=published, predicted=None, missing=lack)
            for machine, row, published, lack in rows
        ],
    )
