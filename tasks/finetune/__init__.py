"""Fine-tune the model, merge the adapter, and export to GGUF."""
