"""Fan-out of independent tasks: over processes of this machine or a Dask cluster, through joblib, or a Ray cluster.

Tasks carry their own seeds (:mod:`unbraid.ground.random`), so the results depend neither on the engine nor on the
number of workers. What a worker that dies had in hand is run again; what was finished is not. Ray is called without
joblib, whose backend for it gives all results at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import torch

from unbraid.ground import progress
from unbraid.ground.errors import ExecutionError, InvalidInputError, UnbraidError, require_extra

Result = TypeVar("Result")
Workers = int | str  # processes of this machine, or "dask:ADDRESS" or "ray:ADDRESS"

ENGINES = ("dask", "ray")
_DEATHS = 3  # of workers in a row, with nothing finished between them
_DEATH_ERRORS = {"BrokenProcessPool", "KilledWorker", "WorkerCrashedError"}
_PATIENCE = 20  # seconds to find a scheduler


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block: faster for small tensors, and the same sums on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_workers(text: str) -> Workers:
    """Workers as a command line has them: ``4``, ``-1``, ``dask:tcp://10.0.0.1:8786``, ``ray:auto``.

    Raises:
        InvalidInputError: if it is none of these.
    """
    try:
        workers: Workers = int(text)
    except ValueError:
        workers = text
    require_workers(workers)
    return workers


def require_workers(workers: Workers) -> None:
    """Check a number of processes, or an engine with its address.

    Raises:
        InvalidInputError: if it is 0 or below -1, or no engine.
    """
    if isinstance(workers, str):
        engine, _, address = workers.partition(":")
        if engine in ENGINES and address:
            return
    elif not isinstance(workers, bool) and (workers == -1 or workers > 0):
        return
    raise InvalidInputError(
        "workers must be a positive number, -1 for one a core, or a cluster such as dask:tcp://10.0.0.1:8786 or "
        f"ray:auto; got {workers}."
    )


def fan_out(
    function: Callable[..., Result],
    tasks: Sequence[dict[str, Any]],
    *,
    workers: Workers = 1,
    description: str = "tasks",
) -> list[Result]:
    """``[function(**task) for task in tasks]``, on several processes if asked for.

    Args:
        function: importable (picklable by reference) if ``workers`` is not 1; of a cluster, on all of its machines.
        tasks: keyword arguments, one dictionary a task.
        workers: number of processes, -1 for one a core; or a cluster, "dask:ADDRESS" or "ray:ADDRESS".
        description: label of the progress bar.

    Returns:
        Results in the order of ``tasks``, whatever the workers.

    Raises:
        InvalidInputError: if ``workers`` makes no sense, or those of Dask have several threads.
        ExecutionError: if there is no such cluster, or workers die again and again.
        MissingExtraError: if the engine is not installed.
    """
    require_workers(workers)
    results: dict[int, Result] = {}
    with progress.task(description, len(tasks)) as advance:
        if workers == 1:
            for number, arguments in enumerate(tasks):
                results[number] = function(**arguments)
                advance()
        else:
            with _engine(workers) as finished:
                for number, result in finished(function, tasks):
                    results[number] = result
                    advance()
    return [results[number] for number in range(len(tasks))]


Tasks = Sequence[dict[str, Any]]
Finished = Callable[[Callable[..., Any], Tasks], Iterator[tuple[int, Any]]]  # (number, result) of each, as they come


@contextmanager
def _engine(workers: Workers) -> Iterator[Finished]:
    """What runs tasks inside the block."""
    if isinstance(workers, int):
        yield partial(_through_joblib, {"n_jobs": workers})
        return
    engine, _, address = workers.partition(":")
    with _dask(address) if engine == "dask" else _ray(address) as finished:
        yield finished


def _through_joblib(options: dict[str, Any], function: Callable[..., Any], tasks: Tasks) -> Iterator[tuple[int, Any]]:
    from joblib import Parallel, delayed

    left, deaths = dict(enumerate(tasks)), 0
    while left:
        parallel = Parallel(return_as="generator_unordered", batch_size=1, **options)
        work = [delayed(_numbered)(function, number, arguments) for number, arguments in left.items()]
        try:
            for number, result in parallel(work):
                del left[number]
                deaths = 0
                yield number, result
        except Exception as error:
            if not _is_death(error):
                raise
            deaths += 1
            if deaths > _DEATHS:
                raise _died(error) from error


def _numbered(function: Callable[..., Result], number: int, arguments: dict[str, Any]) -> tuple[int, Result]:
    return number, function(**arguments)


def _is_death(error: Exception) -> bool:
    return any(each.__name__ in _DEATH_ERRORS for each in type(error).__mro__)


def _died(error: Exception) -> ExecutionError:
    return ExecutionError(
        f"Workers died {_DEATHS + 1} times in a row: {error} Look at the memory that a task takes; fewer workers a "
        "machine leave each more."
    )


@contextmanager
def _dask(address: str) -> Iterator[Finished]:
    from joblib import parallel_config

    distributed = require_extra("distributed", "distributed")
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ExecutionError(
            f"There is no Dask scheduler at {address}: {error}. Start one with `dask scheduler`, and workers with "
            f"`dask worker {address} --nthreads 1`."
        ) from error
    with client:
        wide = sorted(name for name, threads in client.nthreads().items() if threads > 1)
        if wide:
            raise InvalidInputError(
                f"Workers of Dask need a thread each, or tasks would share random numbers; {wide[0]} has several. "
                "Start them with --nthreads 1, several a machine with --nworkers."
            )
        with parallel_config(backend="dask", client=client, wait_for_workers_timeout=_PATIENCE):
            yield partial(_through_joblib, {})


@contextmanager
def _ray(address: str) -> Iterator[Finished]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which it would send over the network
    ray = require_extra("ray", "distributed")
    running = ray.is_initialized()
    if not running:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ExecutionError(
                f"There is no Ray cluster at {address}: {error}. Start one with `ray start --head`, and more machines "
                "with `ray start --address=HEAD:6379`."
            ) from error
    try:
        yield partial(_through_ray, ray)
    finally:
        if not running:
            ray.shutdown()


def _through_ray(ray: ModuleType, function: Callable[..., Any], tasks: Tasks) -> Iterator[tuple[int, Any]]:
    remote = ray.remote(num_cpus=1, max_retries=_DEATHS)(_numbered)
    waiting = [remote.remote(function, number, arguments) for number, arguments in enumerate(tasks)]
    while waiting:
        (done, *_), waiting = ray.wait(waiting, num_returns=1)
        try:
            yield ray.get(done)
        except Exception as error:
            cause = getattr(error, "cause", None)  # the error of a task, in one of Ray's own
            if isinstance(cause, UnbraidError):
                raise cause from error
            if _is_death(error):
                raise _died(error) from error
            if "ModuleNotFoundError" in str(error):
                raise ExecutionError(
                    f"A worker cannot import what it needs; install it on all machines: {error}"
                ) from error
            raise
