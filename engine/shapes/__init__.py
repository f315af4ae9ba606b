"""Model shapes: the sizes of a mixture-of-experts transformer, without its weights."""

from engine.shapes.shape import MlaRanks, ModelShape, load_shape, shape_names

__all__ = ["MlaRanks", "ModelShape", "load_shape", "shape_names"]
