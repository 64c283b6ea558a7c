"""What passes between steps, and what a user may say: frozen models, JSON in and out."""
