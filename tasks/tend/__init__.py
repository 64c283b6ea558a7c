"""What needs a person, and what nobody else would notice."""
