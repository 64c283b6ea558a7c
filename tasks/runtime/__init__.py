"""The step cache, programs in processes of their own, logging and hardware."""
