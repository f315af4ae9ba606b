"""The plan, and the words in it: capacity, weight formats."""
