"""Learned predictors at work: exact arithmetic, features, artefacts. Fitting them is `experiments.fit`, with torch."""
