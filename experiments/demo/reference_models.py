"""The reference models: two small mixture-of-experts language models trained on the standard library."""

from pathlib import Path

NAMES = ("mixtral-mini", "qwen3-moe-mini")
CHECKPOINTS = Path(__file__).parent / "checkpoints"  # a folder per name, for transformers' from_pretrained

__all__ = ["CHECKPOINTS", "NAMES"]
