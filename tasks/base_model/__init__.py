"""The base model: inspect it before training, and convert it if it is a GGUF file."""
