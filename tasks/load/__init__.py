"""From sources to shards: finding, cutting, reading, splitting and merging data."""
