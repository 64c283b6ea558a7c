"""Measurements that take longer than a test should; each writes its results beside itself."""
