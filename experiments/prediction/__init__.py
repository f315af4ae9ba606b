"""The comparison study of predictors: `python -m experiments.prediction FOLDER` (docs/experiments.md)."""
