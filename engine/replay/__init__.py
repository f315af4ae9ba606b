"""Decide once, time on any number of machines, and say what was found."""
