"""One-off research and benchmarks: not installed, and nothing of the product imports it."""
