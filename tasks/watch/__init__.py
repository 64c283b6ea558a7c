"""Watching data: whether what is there now is worth a retraining."""
