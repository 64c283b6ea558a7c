"""Load, adapt, merge and save models for the programs."""
