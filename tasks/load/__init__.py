"""Loading: data sources to shards, stable splits, deduplication and the data report."""
