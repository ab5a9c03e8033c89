"""Fan-out: the same results in the same order whatever the workers, also where one dies."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from unbraid.ground.errors import ExecutionError, InvalidInputError
from unbraid.ground.parallel import fan_out, read_workers
from unbraid.ground.random import stream

TASKS = [{"seed": seed} for seed in range(9)]


def draw(seed):
    return torch.randn(3, generator=stream(seed, "draw"), dtype=torch.float64).tolist()


def refuse(seed):
    raise InvalidInputError(f"no seed {seed}")


def die_once(seed, folder):
    """The first that comes to seed 4 takes its worker with it."""
    with (Path(folder) / f"{seed}-{os.getpid()}-{time.time_ns()}").open("w"):
        pass
    died = Path(folder) / "died"
    if seed == 4 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(seed)


def always_die(seed):
    os.kill(os.getpid(), signal.SIGKILL)


def runs(folder, seed):
    return len(list(Path(folder).glob(f"{seed}-*")))


@pytest.fixture(scope="module")
def dask():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield f"dask:{cluster.scheduler_address}"


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # where workers find the functions of this file
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=here)
    yield "ray:auto"
    ray.shutdown()


@pytest.fixture(params=["processes", "dask", "ray"])
def workers(request):
    return 2 if request.param == "processes" else request.getfixturevalue(request.param)


def test_results_are_those_of_one_process(workers):
    assert fan_out(draw, TASKS, workers=workers) == fan_out(draw, TASKS)
    assert fan_out(draw, [], workers=workers) == []


def test_what_a_dead_worker_had_is_run_again_and_nothing_that_was_finished(workers, tmp_path):
    tasks = [{"seed": seed, "folder": str(tmp_path)} for seed in range(9)]
    assert fan_out(die_once, tasks, workers=workers) == fan_out(draw, TASKS)
    assert runs(tmp_path, 4) == 2


def test_errors_of_tasks_come_through(workers):
    with pytest.raises(InvalidInputError, match=r"^no seed 3$"):
        fan_out(refuse, [{"seed": 3}], workers=workers)


def test_workers_that_die_again_and_again_end_it():
    with pytest.raises(ExecutionError, match="Workers died 4 times in a row"):
        fan_out(always_die, [{"seed": 0}], workers=2)


def test_workers_of_dask_have_one_thread():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        pytest.raises(InvalidInputError, match="--nthreads 1"),
    ):
        fan_out(draw, TASKS, workers=f"dask:{cluster.scheduler_address}")


@pytest.mark.parametrize("text", ["0", "-2", "two", "dask", "dask:", "slurm:here", "1.5", ""])
def test_what_is_no_worker(text):
    with pytest.raises(InvalidInputError, match=r"workers must be a positive number, -1 for one a core, or a cluster"):
        read_workers(text)


def test_workers_are_read():
    assert [read_workers(text) for text in ("3", "-1", "dask:tcp://a:1", "ray:auto")] == [
        3,
        -1,
        "dask:tcp://a:1",
        "ray:auto",
    ]


def test_clusters_that_are_not_there(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("unbraid.ground.parallel._PATIENCE", 1)
    with pytest.raises(ExecutionError, match=r"There is no Dask scheduler at tcp://127\.0\.0\.1:9"):
        fan_out(draw, TASKS, workers="dask:tcp://127.0.0.1:9")
