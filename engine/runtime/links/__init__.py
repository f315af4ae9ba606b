"""Copies from host memory to device slots."""
