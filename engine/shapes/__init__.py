"""Model shapes: the sizes of a mixture-of-experts transformer, without its weights."""

from engine.shapes.loading import load_shape, shape_names
from engine.shapes.shape import MlaRanks, ModelShape

__all__ = ["MlaRanks", "ModelShape", "load_shape", "shape_names"]
