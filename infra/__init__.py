"""How Burnish is deployed."""
