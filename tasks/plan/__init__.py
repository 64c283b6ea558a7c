"""How the model will be trained: the plan, preflight checks and the memory forecast."""
