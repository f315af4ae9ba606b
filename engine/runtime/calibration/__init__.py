"""A machine, measured into a hardware profile."""
