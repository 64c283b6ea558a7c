"""What others do with the same model and examples: one script each, run by its own Python."""
