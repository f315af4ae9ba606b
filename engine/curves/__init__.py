"""Every cache size in one pass."""
