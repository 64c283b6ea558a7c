"""Runs the workers of a pool that trains and scores, on the machine that has the GPUs:

    PREFECT_API_URL=http://server:4200/api python -m infra.gpu_workers --pool gpu

A recipe then names the pool: `plan: {pool: gpu}`. Each worker owns a group of GPUs, one by default,
and has one run at a time. All workers of a pool are of one kind: machines of another kind get
another pool. Ctrl-C lets the runs keep a checkpoint, and stops the workers.

The workers need no copy of this repository but the installed package, and the credentials of the
store and of the sources in their environment. What they fetch from a store on S3, and what they
make, they keep in `BURNISH_CACHE` (by default `~/.cache/burnish/artifacts`), up to
`BURNISH_CACHE_GB` (50).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time

from prefect.client.orchestration import get_client
from prefect.flows import EntrypointType

from flows.deployments import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE, ensure_pool
from flows.steps import steps
from infra.processes import handle_signals, start, stop, stop_runs
from tasks.runtime.hardware import visible_gpus
from tasks.storage import artifact_cache
from tasks.storage.store import sweep_machine


def main(arguments: list[str] | None = None) -> int:
    """Start the workers, wait until they are stopped, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--pool", default="gpu", help="the work pool; created if it is not there")
    parser.add_argument("--gpus-per-worker", type=int, default=1, metavar="N")
    wanted = parser.parse_args(arguments)
    handle_signals()
    # A run that waits for a GPU should not wait 10 seconds for its worker to look.
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    os.environ.setdefault(artifact_cache.VARIABLE, "~/.cache/burnish/artifacts")
    register(wanted.pool)
    sweep_machine()
    groups = gpu_groups([gpu.uuid for gpu in visible_gpus()], wanted.gpus_per_worker)
    workers = []
    try:
        for number, group in enumerate(groups):
            name = f"{platform.node()}-{wanted.pool}-{number}"
            owned = {"CUDA_VISIBLE_DEVICES": group} if group else {}
            command = ("worker", "start", "--pool", wanted.pool, "--name", name, "--limit", "1")
            workers.append(start(*command, environment=owned))
            print(f"Worker {name}: {f'GPUs {group}' if group else 'no GPU, the CPU'}", flush=True)
        while all(worker.poll() is None for worker in workers):
            time.sleep(1)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        stop_runs(workers)
        for worker in workers:
            stop(worker)


def register(pool: str) -> None:
    """Create the work pool if it is not there, and its deployment of the flow `steps`."""
    with get_client(sync_client=True) as client:
        ensure_pool(client, pool)
    # By its module: a worker loads it from the installed package, wherever it runs.
    steps.to_deployment(
        name=pool,
        work_pool_name=pool,
        job_variables={"env": {HEARTBEAT_VARIABLE: HEARTBEAT_SECONDS}},
        entrypoint_type=EntrypointType.MODULE_PATH,
    ).apply()


def gpu_groups(gpus: list[str], size: int) -> list[str]:
    """The GPUs of each worker, for its `CUDA_VISIBLE_DEVICES`; one worker without any if there are
    none.

    Args:
        gpus: As `CUDA_VISIBLE_DEVICES` names them.
        size: How many each worker gets.

    Raises:
        SystemExit: They cannot be divided so.
    """
    if not gpus:
        return [""]
    if size < 1 or len(gpus) % size:
        raise SystemExit(
            f"--gpus-per-worker {size}: found {len(gpus)} GPUs; expected a number that divides "
            "them, so that all workers are alike"
        )
    return [",".join(gpus[start : start + size]) for start in range(0, len(gpus), size)]


if __name__ == "__main__":
    sys.exit(main())
