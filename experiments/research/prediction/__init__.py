"""The comparison study of predictors: `python -m experiments.research.prediction FOLDER` (docs/experiments.md)."""
