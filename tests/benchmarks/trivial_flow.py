"""What Prefect itself costs: a flow of so many tasks that do nothing.

python tests/benchmarks/trivial_flow.py NUMBER
"""

import sys

from prefect import flow, task


@task
def nothing(number: int) -> int:
    """Give back what it got."""
    return number


@flow(name="trivial")
def trivial(tasks: int) -> int:
    """Call the tasks one after another."""
    return sum(nothing(number) for number in range(tasks))


if __name__ == "__main__":
    trivial(int(sys.argv[1]))
