"""What a person or a schedule starts: flows, the command line and recipes. Wiring only."""

import os

# Prefect reads these when it is imported. No usage data is sent, and a slow first start, in which
# the temporary server migrates its database, does not count as a failure.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
