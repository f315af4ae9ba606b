"""How often the intervals of studies hold what they should: by simulation, and on resamples of recorded requests."""
