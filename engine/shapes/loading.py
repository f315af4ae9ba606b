"""A model's shape by whatever names it: a shipped name, a shape's .toml, a model's config.json or directory, a GGUF."""

import os
from pathlib import Path

from engine.shapes.shape import ModelShape
from tracekit import named_toml
from tracekit.errors import ShapeError


def load_shape(name_or_path: str | os.PathLike[str]) -> ModelShape:
    """A shipped shape by name, or by path a user's .toml, a model's config.json, its directory, or a GGUF file.

    ShapeError, one line, for anything else.
    """
    text = os.fspath(name_or_path)
    if isinstance(text, str):
        if text.endswith(".gguf"):
            from engine.shapes.gguf import read_gguf
            from engine.shapes.gguf_shape import shape_of_gguf

            return shape_of_gguf(read_gguf(text), text)
        if text.endswith(".json") or (not text.endswith(".toml") and text not in shape_names() and Path(text).is_dir()):
            from engine.shapes.config import load_config_shape

            return load_config_shape(text)
    return named_toml.load(
        name_or_path,
        ModelShape,
        what="model shape",
        package="engine.shapes",
        folder="models",
        error=ShapeError,
    )


def shape_names() -> tuple[str, ...]:
    """Names of the shipped model shapes, sorted."""
    return named_toml.names("engine.shapes", "models")
