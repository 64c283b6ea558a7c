"""Training loops, batches and losses that the programs are built from."""
