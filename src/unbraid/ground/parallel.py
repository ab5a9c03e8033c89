"""Fan-out of independent tasks over processes, through joblib.

Tasks carry their own seeds (:mod:`unbraid.ground.random`), so the results do not depend on the number of workers. A
``joblib.parallel_config`` block around a call chooses another joblib backend, such as Dask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError

Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block: faster for small tensors, and the same sums on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def require_workers(workers: int) -> None:
    """Check a number of processes.

    Raises:
        InvalidInputError: if it is 0 or below -1.
    """
    if workers == 0 or workers < -1:
        raise InvalidInputError(f"workers must be a positive number, or -1 for one a core; got {workers}.")


def fan_out(
    function: Callable[..., Result], tasks: Sequence[dict[str, Any]], *, workers: int = 1, description: str = "tasks"
) -> list[Result]:
    """``[function(**task) for task in tasks]``, on several processes if asked for.

    Args:
        function: importable (picklable by reference) if ``workers`` is not 1.
        tasks: keyword arguments, one dictionary a task.
        workers: number of processes; -1 for one a core.
        description: label of the progress bar.

    Returns:
        Results in the order of ``tasks``, whatever the number of workers.

    Raises:
        InvalidInputError: if ``workers`` is 0 or below -1.
    """
    require_workers(workers)
    results: list[Result] = []
    with progress.task(description, len(tasks)) as advance:
        if workers == 1:
            for arguments in tasks:
                results.append(function(**arguments))
                advance()
            return results
        from joblib import Parallel, delayed

        jobs = Parallel(n_jobs=workers, return_as="generator")(delayed(function)(**task) for task in tasks)
        for result in jobs:
            results.append(result)
            advance()
    return results
