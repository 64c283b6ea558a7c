"""The gate's judgement, and its statistics."""
