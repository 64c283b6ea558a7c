"""How it is deployed."""
