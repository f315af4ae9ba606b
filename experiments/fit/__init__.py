"""Fitting predictors (torch). What is fitted runs without torch: `policies.learned`."""
