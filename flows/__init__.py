"""What a person starts or schedules: wiring only."""

import os

# Read by Prefect at its import. No usage data is sent anywhere, and a slow first start (the
# temporary server migrates its database) is not taken for a failure.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
