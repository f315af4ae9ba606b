"""The day with a GPU: one command that tries, times and compares what only a GPU can tell (docs/engine.md)."""
