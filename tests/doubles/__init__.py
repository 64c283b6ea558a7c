"""Local servers in place of the services that a run uses, for tests without a network."""
