"""How to record: the options of one recording, checked when they are made."""

from dataclasses import dataclass

from tracekit.errors import ModelError
from tracekit.recorder.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """The options of one recording.

    `max_new_tokens` per request (ignored with `score`, which routes the given text and generates nothing,
    `chunk` tokens of each request at a time). `prefill_chunk`: prompts are read so many tokens at a time, each a
    step; None reads them at once. `lookahead` distances in MoE layers. Sampling is greedy unless
    `do_sample`; then request r draws from its own generator, seeded by (`seed`, r), so batches and resuming
    change nothing. A shard is flushed at the first batch boundary after `shard_rows` rows. Raises ModelError
    for an impossible value.
    """

    max_new_tokens: int = 128
    batch_size: int = 1
    logits: bool = False
    lookahead: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    resume: bool = False
    score: bool = False
    chunk: int = 512
    prefill_chunk: int | None = None
    shard_rows: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "chunk", "shard_rows"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise ModelError(f"prefill_chunk must be at least 1, not {self.prefill_chunk}")
        if self.prefill_chunk is not None and self.score:
            raise ModelError("a prefill chunk is for generating: --score reads in chunks of its own")
        if any(distance < 1 for distance in self.lookahead):
            raise ModelError(f"lookahead distances must be at least 1, not {min(self.lookahead)}")
        Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)

    @property
    def drawn(self) -> Sampling | None:
        """How tokens are drawn; None: greedily."""
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        return sampling if self.do_sample else None

    def sampling(self) -> dict[str, int | float | str | bool | None]:
        """What decides the routing besides model, prompts and seed, for the manifest."""
        if self.score:
            return {"score": True, "batch_size": self.batch_size, "chunk": self.chunk}
        settings: dict[str, int | float | str | bool | None] = {
            "score": False,
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
        }
        if self.prefill_chunk is not None:
            settings["prefill_chunk"] = self.prefill_chunk
        if self.do_sample:
            settings |= {"temperature": self.temperature, "top_p": self.top_p}
        return settings
