"""Turn texts and conversations into token ids, shard by shard."""
