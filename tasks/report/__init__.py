"""What people read: the run report, progress and charts."""
