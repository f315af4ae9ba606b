"""Priors against what is published, and against recorded traces that no family was fitted to."""
