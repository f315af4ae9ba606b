"""Experts as bytes: layouts, stores, slab files, checkpoints, conversion, quantisation."""
