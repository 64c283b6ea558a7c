"""What the programs are made of: models, tokens, batches, losses and training's loop."""
