"""Storage: the artifact store, S3, the Hugging Face Hub, and the sources of data and models."""
