"""The unit of time: every time in this project is a whole number of nanoseconds."""

SECOND = 10**9
