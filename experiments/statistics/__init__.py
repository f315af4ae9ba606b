"""Comparing plans by what each request cost under either."""
