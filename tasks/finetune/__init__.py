"""Train, merge and export the model."""
