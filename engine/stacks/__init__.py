"""Stacks of caches that nest: how far down each lookup finds its expert (Mattson et al. 1970)."""
