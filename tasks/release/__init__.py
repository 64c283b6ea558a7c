"""Where releases go, and the log that says which one is deployed."""
