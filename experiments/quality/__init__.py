"""Quality: what a plan costs in how well a model predicts text, measured in the engine."""
