"""The base model: what it is, and how a GGUF file becomes one that can be trained."""
