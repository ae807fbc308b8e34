"""Training: settings, objectives, and the loop."""

from robust_features.training.loop import HISTORY, SGD, Adam, OneCycle, StepLR, Trained, Training, train

__all__ = ["HISTORY", "SGD", "Adam", "OneCycle", "StepLR", "Trained", "Training", "train"]
