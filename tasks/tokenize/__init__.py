"""Texts and conversations to token ids, shard by shard."""
