"""A trace's demand and signals turned into decisions: no clock."""
