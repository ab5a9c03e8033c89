"""A run killed at any moment resumes to the same bits."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from unbraid.circuits import brickwall
from unbraid.disentangling import disentangle
from unbraid.tensors import MPO

SCRIPT = """
import sys
import torch
from unbraid.circuits import brickwall
from unbraid.disentangling import disentangle, search
from unbraid.tensors import MPO

search.SAVE_EVERY = 0.02
engine, restarts, place = sys.argv[1], int(sys.argv[2]), sys.argv[3]
mpo = MPO.random((2,) * 5, (2,) * 5, 2, seed=3, dtype=torch.float64)
result = disentangle(
    mpo, brickwall(5, 4, gate="o"), engine=engine, restarts=restarts, max_sweeps=int(sys.argv[4]), tolerance=0.0,
    checkpoint=place,
)
print(result.fingerprint(), result.overlap.hex(), len(result.history))
"""


def outcome(engine, restarts, sweeps):
    mpo = MPO.random((2,) * 5, (2,) * 5, 2, seed=3, dtype=torch.float64)
    result = disentangle(
        mpo, brickwall(5, 4, gate="o"), engine=engine, restarts=restarts, max_sweeps=sweeps, tolerance=0.0
    )
    return f"{result.fingerprint()} {result.overlap.hex()} {len(result.history)}"


@pytest.mark.parametrize(("engine", "restarts", "sweeps"), [("dense", 4, 2500), ("mpo", 1, 25)])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, engine, restarts, sweeps):
    # The first process compiles the loops, the others load what it compiled: all must round alike.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    place = tmp_path / "checkpoint"
    command = [sys.executable, "-c", SCRIPT, engine, str(restarts), str(place), str(sweeps)]
    moments = random.Random(7)
    kills = 0
    while kills < 3:
        existed = place.exists()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        while not existed and not place.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.3) + (2.0 if existed else 0.0))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert finished.stdout.strip() == outcome(engine, restarts, sweeps)
