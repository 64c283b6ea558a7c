"""Stand-ins for the services that a run talks to, for tests that need no network."""
