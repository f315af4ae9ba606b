"""Doing it: the plan, the hardware profile, and two executors of the same decisions."""
