"""The store, S3, the Hub, and where data and models come from."""
