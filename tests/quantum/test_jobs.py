"""Jobs: packed within limits, tried again, kept and found again; nothing is paid for twice."""

import copy
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.primitives import BackendSamplerV2, StatevectorSampler
from qiskit.providers.fake_provider import GenericBackendV2

from tests.quantum.standin import TOKEN, Service
from unbraid.circuits import Circuit, brickwall
from unbraid.ground.errors import ExecutionError, FileFormatError, InvalidInputError, OutputError
from unbraid.ground.manifest import build_manifest
from unbraid.quantum.backends import fake_backend
from unbraid.quantum.fingerprint import fingerprint
from unbraid.quantum.jobs import _lives
from unbraid.quantum.limits import Limits
from unbraid.quantum.programs import Program, Template
from unbraid.quantum.samplers import AerExecutor, SamplerExecutor
from unbraid.quantum.store import ResultsStore


def circuit(seed=3):
    return Circuit(brickwall(3, 2), init="random", seed=seed, dtype=torch.float64)


def units(count, seed=0):
    x = torch.randn(count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def executor(service, **options):
    options = {"max_circuits": 2, "backoff": 0} | options
    return SamplerExecutor(service.sampler(), **options)


def test_jobs_keep_within_their_limits():
    def program(gates, shots):
        return Program(Template(QuantumCircuit(1), (), gates, (0,), "key"), (), shots)

    programs = [program(4, 10), program(4, 10), program(4, 10), program(30, 10), program(1, 90), program(1, 20)]
    packed = list(Limits(circuits=3, two_qubit_gates=10, shots=100).pack(programs))
    assert packed == [range(2), range(2, 3), range(3, 4), range(4, 5), range(5, 6)]
    assert list(Limits(circuits=3).pack(programs)) == [range(3), range(3, 6)]
    assert list(Limits().pack([])) == []


@pytest.mark.parametrize(
    "options",
    [
        {"max_circuits": 0},
        {"max_shots": 1.5},
        {"max_two_qubit_gates": True},
        {"retries": -1},
        {"backoff": float("nan")},
        {"timeout": 0},
        {"retrieve": 3},
        {"timeout": float("inf")},
        {"timeout": True},
        {"backoff": True},
        {"jobs_at_once": 0},
        {"store": 3},
        {"store": "/not/there/store.sqlite"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidInputError):
        executor(Service(), **options)


def test_what_was_measured_is_not_measured_again(tmp_path):
    service, x = Service(), units(5)
    first = executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    assert (service.circuits, len(first.job_ids)) == (5, 3)
    again = executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    assert torch.equal(first.counts, again.counts)
    assert (service.circuits, again.job_ids) == (5, ())
    executor(service, store=tmp_path / "store").run(circuit(), x, 101)
    executor(service, store=tmp_path / "store").run(circuit(4), x, 100)
    assert service.circuits == 15
    assert len(ResultsStore(tmp_path / "store")) == 15


@pytest.mark.parametrize("kept", [False, True])
def test_equal_circuits_run_once(tmp_path, kept):
    service, x = Service(), units(2)[[0, 1, 0, 0]]
    options = {"store": tmp_path / "store"} if kept else {}
    counts = executor(service, **options).run([circuit(), circuit(4), circuit()], x, 50).counts
    assert service.circuits == 4
    assert torch.equal(counts[:, 0], counts[:, 2])
    assert torch.equal(counts[0], counts[2])
    assert not torch.equal(counts[0], counts[1])


def test_a_failed_job_is_tried_again_and_others_are_not(tmp_path):
    service, x = Service(), units(4)
    service.submit_faults = [None, ConnectionError("the queue is closed"), None]
    service.result_faults = [RuntimeError("the device is down")]
    counts = executor(service, store=tmp_path / "store").run(circuit(), x, 100).counts
    assert bool((counts.sum(dim=1) == 100).all())
    assert service.circuits == 6  # the job that died was paid for, no other twice
    assert ResultsStore(tmp_path / "store").pending() == {}


@pytest.mark.parametrize("kind", ["submit", "result"])
def test_failures_are_bounded_and_what_came_before_is_kept(tmp_path, kind):
    service, x = Service(), units(6)
    if kind == "submit":
        service.submit_faults = [None, *[ConnectionError("no route")] * 9]
    else:
        service.result_faults = [None, *[ConnectionError("no route")] * 9]
    with pytest.raises(ExecutionError, match="failed 3 times on a job of 2 circuits: ConnectionError: no route"):
        executor(service, store=tmp_path / "store", retries=2).run(circuit(), x, 100)
    assert len(ResultsStore(tmp_path / "store")) == 2
    service.submit_faults = service.result_faults = []
    before = service.circuits
    executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    assert service.circuits == before + 4


def test_tries_wait_longer_and_longer(monkeypatch):
    service, waits = Service(), []
    monkeypatch.setattr(time, "sleep", waits.append)
    service.submit_faults = [ConnectionError("no route")] * 3
    executor(service, backoff=0.5).run(circuit(), units(1), 10)
    assert waits == [0.5, 1.0, 2.0]


def test_a_job_that_outlives_its_process_is_collected_not_submitted_again(tmp_path):
    service, x = Service(), units(2)
    service.result_faults = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    assert list(ResultsStore(tmp_path / "store").pending()) == ["job-0"]
    counts = executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100).counts
    assert service.circuits == 2
    assert bool((counts.sum(dim=1) == 100).all())
    assert ResultsStore(tmp_path / "store").pending() == {}


@pytest.mark.parametrize(("count", "packed"), [(5, 3), (3, 2), (4, 100), (1, 2)])
def test_jobs_that_were_packed_otherwise_are_collected_too(tmp_path, count, packed):
    service, x = Service(), units(5)
    service.result_faults = [None, KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    store = ResultsStore(tmp_path / "store")
    assert (len(store), list(store.pending())) == (2, ["job-1"])
    run = executor(service, store=store, retrieve=service.job, max_circuits=packed)
    # the first two are there; the job holds the third and the fourth, and all of it is kept
    counts = run.run(circuit(), x[2 : 2 + count] if count < 5 else x, 100).counts
    assert bool((counts.sum(dim=1) == 100).all())
    assert store.pending() == {}
    assert service.circuits == (4 if count == 1 else 5)
    again = executor(service, store=store, retrieve=service.job).run(circuit(), x, 100)
    assert (service.circuits, bool((again.counts.sum(dim=1) == 100).all())) == (5, True)


def test_a_backend_that_tells_of_its_service_needs_no_retrieve(tmp_path):
    service, x = Service(), units(2)
    service.result_faults = [KeyboardInterrupt()]

    def run():
        made = executor(service, store=tmp_path / "store", backend=Backend())
        return made.run(circuit(), x, 100)

    class Backend(GenericBackendV2):
        def __init__(self):
            super().__init__(3, seed=0)
            self.service = service

    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    assert service.circuits == 2


def test_a_store_that_is_locked_after_submission_loses_no_job(tmp_path):
    """The job is waited for; its counts are kept if they can be, and else the error names it."""
    service, x = Service(), units(2)
    store = ResultsStore(tmp_path / "store", lock_seconds=0.05)
    other = sqlite3.connect(tmp_path / "store", isolation_level=None)
    service.on_submit = lambda: other.execute("BEGIN IMMEDIATE")
    service.on_result = lambda: other.execute("ROLLBACK")
    executor(service, store=store, retrieve=service.job).run(circuit(), x, 100)
    assert (service.circuits, len(store), store.pending()) == (2, 2, {})

    service.on_result = lambda: None
    with pytest.raises(ExecutionError, match=r"locked.*Job job-1 was submitted.*submitted\('ticket-") as caught:
        executor(service, store=store, retrieve=service.job).run(circuit(4), x, 100)
    other.execute("ROLLBACK")
    service.on_submit = lambda: None
    with pytest.raises(ExecutionError, match="while it submitted 2 circuits"):
        executor(service, store=store, retrieve=service.job).run(circuit(4), x, 100)
    (ticket,) = store.pending()
    assert ticket in str(caught.value)
    with pytest.raises(InvalidInputError, match="no ticket 'other'"):
        store.submitted("other", "job-1")
    store.submitted(ticket, "job-1")
    executor(service, store=store, retrieve=service.job).run(circuit(4), x, 100)
    assert (service.circuits, len(store), store.pending()) == (4, 4, {})


def test_a_process_that_ends_while_it_submits_leaves_a_ticket(tmp_path):
    service, x = Service(), units(2)

    def die():
        raise KeyboardInterrupt

    service.on_submit = die
    with pytest.raises(KeyboardInterrupt):
        executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    service.on_submit = lambda: None
    store = ResultsStore(tmp_path / "store")
    with pytest.raises(ExecutionError, match=r"Look at your provider's list of jobs"):
        executor(service, store=store, retrieve=service.job).run(circuit(), x, 100)
    (ticket,) = store.pending()
    store.forget(ticket)
    executor(service, store=store, retrieve=service.job).run(circuit(), x, 100)
    assert store.pending() == {}


def test_an_earlier_job_that_failed_is_run_anew(tmp_path):
    service, x = Service(), units(2)
    service.result_faults = [KeyboardInterrupt(), RuntimeError("the device is down")]
    with pytest.raises(KeyboardInterrupt):
        executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    assert service.circuits == 4
    assert ResultsStore(tmp_path / "store").pending() == {}


def test_results_beside_a_bad_one_are_kept(tmp_path):
    service, x = Service(), units(4)
    service.short = {1}  # the second circuit of every job
    run = {"store": tmp_path / "store", "max_circuits": 4, "retrieve": service.job}
    with pytest.raises(ExecutionError, match=r"90 shots where 100.*This is job job-0. Its other results are kept"):
        executor(service, **run).run(circuit(), x, 100)
    assert len(ResultsStore(tmp_path / "store")) == 3
    service.short = set()
    executor(service, **run).run(circuit(), x, 100)
    assert service.circuits == 5
    service.short = {0}
    with pytest.raises(ExecutionError, match=r"90 shots where 100.*This is job job-2\.$"):
        executor(service).run(circuit(), x, 100)


@pytest.mark.parametrize("fault", [TimeoutError("no answer"), RuntimeError("no answer"), "job_id"])
def test_a_submission_that_may_have_come_through_is_not_repeated(tmp_path, fault):
    service, x = Service(), units(2)

    def lost():
        service.on_submit = lambda: None
        if fault == "job_id":
            service.id_faults = [ConnectionError("no answer")]
        else:
            raise fault from ConnectionError("reset")

    service.on_submit = lost
    with pytest.raises(ExecutionError, match=r"may have accepted them. Look at your provider's list of jobs"):
        executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    store = ResultsStore(tmp_path / "store")
    (ticket,) = store.pending()
    store.submitted(ticket, "job-0")
    executor(service, store=store, retrieve=service.job).run(circuit(), x, 100)
    assert (service.circuits, store.pending()) == (2, {})


def test_a_job_that_could_be_fetched_is_not_given_up_without_the_means(tmp_path):
    service, x = Service(), units(2)
    service.result_faults = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    with pytest.raises(ExecutionError, match=r"job-0 was submitted before and can be fetched.*Give retrieve="):
        executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    assert service.circuits == 2


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_two_runs_on_one_store_share_the_work(tmp_path, fetched, delay):
    service, x = Service(), units(8)
    service.on_submit = lambda: time.sleep(0.05)
    service.on_result = lambda: time.sleep(0.05)
    found, options = {}, {"retrieve": service.job} if fetched else {}

    def one(name):
        run = executor(service, store=tmp_path / "store", jobs_at_once=2, **options)
        found[name] = run.run(circuit(), x, 100).counts

    threads = [threading.Thread(target=one, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(delay)
    for thread in threads:
        thread.join()
    assert service.circuits == 8
    assert torch.equal(found[0], found[1])
    assert ResultsStore(tmp_path / "store").pending() == {}


def test_threads_share_a_store(tmp_path):
    store, failed = ResultsStore(tmp_path / "store"), []

    def write(first):
        try:
            for k in range(first, first + 30):
                store.put({f"key {k}": np.arange(4)})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failed, len(store)) == ([], 120)


def test_notes_of_a_process_that_ended_are_told_from_those_of_one_that_runs(tmp_path):
    code = "import sys; from unbraid.quantum.store import *; from unbraid.quantum.jobs import *\n"
    code += "store = ResultsStore(sys.argv[1])\n"
    code += "print(store.claim('ticket-1', [Entry('a', 'meas', 8, 10)], retrievable=False), flush=True)\n"
    code += "sys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "store"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline().strip() == "True"
    ticket = "ticket-1"
    noted = ResultsStore(tmp_path / "store").pending()[ticket]
    assert _lives(ticket, noted)
    assert not ResultsStore(tmp_path / "store").claim("ticket-2", noted.entries, retrievable=False)
    other.communicate()
    assert not _lives(ticket, noted)


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_jobs_are_under_way_at_once(at_once):
    service, most = Service(), []
    service.on_submit = lambda: most.append(len(service.jobs) - service.collected)
    executor(service, jobs_at_once=at_once).run(circuit(), units(12), 100)
    assert max(most) == at_once


def test_a_job_that_cannot_be_fetched_is_not_submitted_again(tmp_path):
    service, x = Service(), units(2)
    service.result_faults = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        executor(service, store=tmp_path / "store").run(circuit(), x, 100)
    service.fetch_faults = [ConnectionError("no route")] * 4
    with pytest.raises(ExecutionError, match="It was not submitted again"):
        executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    assert service.circuits == 2
    ResultsStore(tmp_path / "store").forget("job-0")
    executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    assert service.circuits == 4


def test_a_slow_job_times_out_and_is_collected_later(tmp_path):
    service, x = Service(), units(2)
    service.result_faults = [5.0]
    with pytest.raises(ExecutionError, match=r"job-0 of Sampler has not ended after 0.1 seconds.*run again to collect"):
        executor(service, store=tmp_path / "store", timeout=0.1, retrieve=service.job).run(circuit(), x, 100)
    executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    assert service.circuits == 2


def test_a_locked_store_stops_before_anything_is_paid_for(tmp_path):
    service, x = Service(), units(2)
    store = ResultsStore(tmp_path / "store", lock_seconds=0.05)
    other = sqlite3.connect(tmp_path / "store", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ExecutionError, match="locked by another process"):
        executor(service, store=store).run(circuit(), x, 100)
    assert service.circuits == 0
    other.execute("ROLLBACK")
    executor(service, store=store).run(circuit(), x, 100)


def test_a_full_store_says_so_and_loses_nothing(tmp_path):
    service = Service()
    store = ResultsStore(tmp_path / "store")
    executor(service, store=store).run(circuit(), units(2), 100)
    pages = store._file.execute("PRAGMA page_count").fetchone()[0]
    store._file.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutputError, match="full"):
        executor(service, store=store, max_circuits=100).run(circuit(), units(200, seed=1), 100)
    kept = ResultsStore(tmp_path / "store")
    assert len(kept) == 2
    # what ran is noted: a service that keeps jobs gives it back
    service_circuits = service.circuits
    executor(service, store=kept, max_circuits=100, retrieve=service.job).run(circuit(), units(200, seed=1), 100)
    assert service.circuits <= service_circuits + 200


@pytest.mark.parametrize(
    "damage", ["cut", "noise", "text", "foreign", "newer", "entry", "word", "nothing", "jobs", "no jobs"]
)
def test_a_damaged_or_foreign_store_is_refused(tmp_path, damage):
    path = tmp_path / "store"
    executor(Service(), store=path).run(circuit(), units(3), 100)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2 + 100])
    elif damage == "noise":
        path.write_bytes(content[:100] + bytes(np.random.default_rng(0).integers(0, 256, len(content) - 100, np.uint8)))
    elif damage == "text":
        path.write_text("not a store " * 100)
    else:
        with sqlite3.connect(path) as file:
            if damage == "foreign":
                file.execute("DROP TABLE jobs")
            elif damage == "newer":
                file.execute("UPDATE about SET version = 99")
            elif damage in ("jobs", "no jobs"):
                content = "[1, 2" if damage == "jobs" else None
                file.execute("INSERT INTO jobs VALUES ('job', ?, 'now', 1, 1, 'here', 1)", (content,))
                file.execute("DELETE FROM results")
            else:
                content = {"entry": bytes(64), "word": "abc", "nothing": None}[damage]
                file.execute("UPDATE results SET counts = ?", (content,))
    with pytest.raises(FileFormatError):
        executor(Service(), store=path).run(circuit(), units(3), 100)


def test_no_credentials_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", TOKEN)
    service = Service()
    run = executor(service, store=tmp_path / "store", retrieve=service.job)
    execution = run.run(circuit(), units(3), 100)
    for text in (repr(run), repr(execution), repr(build_manifest())):
        assert TOKEN not in text
    for path in tmp_path.iterdir():
        assert TOKEN.encode() not in path.read_bytes()


KILLED = """
    import sys, time, torch
    from tests.quantum.test_jobs import circuit, units
    from tests.quantum.standin import Service
    from unbraid.quantum.samplers import AerExecutor

    submitted = open(sys.argv[2], "a")
    executor = AerExecutor(seed=5, max_circuits=2, store=sys.argv[1])
    submission = executor._submission

    def slow(generator):
        submit, salt = submission(generator)

        def one(pubs, number):
            submitted.write(f"{number}\\n")
            submitted.flush()
            time.sleep(float(sys.argv[3]))
            return submit(pubs, number)

        return one, salt

    executor._submission = slow
    counts = executor.run(circuit(), units(12), 200).counts
    print(counts.flatten().tolist())
"""


def test_a_killed_run_goes_on_to_the_same_counts_and_repeats_one_job_at_most(tmp_path):
    pytest.importorskip("qiskit_aer")
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / "log")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    process = subprocess.Popen([*command, "0.4"], env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    log = tmp_path / "log"
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().split()) < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout.read() == b""
    done = subprocess.run([*command, "0"], env=environment, capture_output=True, check=True, text=True)
    expected = AerExecutor(seed=5, max_circuits=2).run(circuit(), units(12), 200).counts
    assert done.stdout.strip() == str(expected.flatten().tolist())
    assert sorted(map(int, log.read_text().split())) in ([0, 1, 2, 2, 3, 4, 5], [0, 1, 2, 3, 3, 4, 5])


def test_misread_qubits_are_measured_once_and_taken_into_account():
    aer_noise = pytest.importorskip("qiskit_aer.noise")
    model = aer_noise.NoiseModel()
    for qubit, (up, down) in enumerate([(0.02, 0.1), (0.05, 0.08), (0.01, 0.2)]):
        model.add_readout_error([[1 - up, up], [down, 1 - down]], [qubit])
    run = AerExecutor(model, mitigate_readout=True)
    first = run.run(circuit(), units(2), 1000)
    assert (first.circuits, first.shots) == (4, 2000 + 200_000)
    assert first.confusion.shape == (2, 3, 2, 2)
    expected = torch.tensor([[[0.99, 0.2], [0.01, 0.8]], [[0.95, 0.08], [0.05, 0.92]], [[0.98, 0.1], [0.02, 0.9]]])
    torch.testing.assert_close(first.confusion[0], expected.double(), atol=5e-3, rtol=0)
    second = run.run([circuit(), circuit(4)], units(2), 1000)
    assert (second.circuits, second.confusion.shape) == (4, (2, 2, 3, 2, 2))


@pytest.mark.parametrize("readout", ["reference", "signs"])
def test_mitigation_removes_the_error_of_misread_qubits(readout):
    from unbraid.quantum.readout import read_out

    aer_noise = pytest.importorskip("qiskit_aer.noise")
    model = aer_noise.NoiseModel()
    model.add_all_qubit_readout_error([[0.98, 0.02], [0.06, 0.94]])
    x, exact = units(5), circuit()(units(5)).detach()
    errors = [
        float((read_out(circuit(), x, readout=readout, shots=400_000, executor=run).vectors - exact).norm(dim=1).mean())
        for run in (AerExecutor(model), AerExecutor(model, mitigate_readout=True))
    ]
    assert errors[1] < 0.02 < 0.04 < errors[0]


def test_a_store_does_not_mix_up_simulations(tmp_path):
    noise = pytest.importorskip("qiskit_aer.noise")
    models = []
    for strength in (0.001, 0.3):
        models.append(noise.NoiseModel())
        models[-1].add_all_qubit_quantum_error(noise.depolarizing_error(strength, 2), ["cx"])
    kept = [AerExecutor(model, store=tmp_path / "store").run(circuit(), units(2), 4000).counts for model in models]
    fresh = AerExecutor(models[1]).run(circuit(), units(2), 4000).counts
    assert torch.equal(kept[1], fresh)
    assert not torch.equal(kept[0], kept[1])
    again = []
    for strength in (0.3, 0.001):  # made anew, as another process would
        model = noise.NoiseModel()
        model.add_all_qubit_quantum_error(noise.depolarizing_error(strength, 2), ["cx"])
        again.append(AerExecutor(model, store=tmp_path / "store").run(circuit(), units(2), 4000))
    assert [(found.job_ids, torch.equal(found.counts, old)) for found, old in zip(again, kept[::-1], strict=True)] == [
        ((), True)
    ] * 2
    with_other_method = AerExecutor(method="matrix_product_state", store=tmp_path / "store")
    before = len(ResultsStore(tmp_path / "store"))
    with_other_method.run(circuit(), units(2), 4000)
    assert len(ResultsStore(tmp_path / "store")) == before + 2


def test_keys_tell_noise_apart_and_tags_not():
    noise = pytest.importorskip("qiskit_aer.noise")
    aer = pytest.importorskip("qiskit_aer")
    runtime = pytest.importorskip("qiskit_ibm_runtime")

    def model(strength):
        made = noise.NoiseModel()
        made.add_all_qubit_quantum_error(noise.depolarizing_error(strength, 2), ["cx"])
        return made

    makers = [
        lambda strength: BackendSamplerV2(backend=aer.AerSimulator(noise_model=model(strength))),
        lambda strength: aer.primitives.SamplerV2.from_backend(aer.AerSimulator(noise_model=model(strength))),
        lambda strength: aer.primitives.SamplerV2(options={"backend_options": {"noise_model": model(strength)}}),
    ]
    for make in makers:
        weak, strong, other = (fingerprint(make(strength), None, simulated=True) for strength in (0.01, 0.5, 0.5))
        assert weak != strong == other
    first, second = GenericBackendV2(3, seed=0), GenericBackendV2(3, seed=1)
    sampler = StatevectorSampler()
    assert fingerprint(sampler, first, simulated=True) != fingerprint(sampler, second, simulated=True)
    assert fingerprint(sampler, first, simulated=False) == fingerprint(sampler, second, simulated=False)
    device = fake_backend("fake_manila")
    plain, tagged, decoupled = (runtime.SamplerV2(mode=device) for _ in range(3))
    tagged.options.environment.job_tags = ["mine"]
    decoupled.options.dynamical_decoupling.enable = True
    told = [fingerprint(each, device, simulated=False) for each in (plain, tagged, decoupled)]
    assert told[0] == told[1] != told[2]


def test_a_job_that_runs_on_is_asked_again_not_paid_again(tmp_path):
    service, x = Service(), units(2)
    service.status = "RUNNING"
    service.result_faults = [ConnectionError("no route")] * 2
    executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(), x, 100)
    assert service.circuits == 2
    service.result_faults = [ConnectionError("no route")] * 9
    with pytest.raises(ExecutionError, match="no route"):
        executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(4), x, 100)
    assert list(ResultsStore(tmp_path / "store").pending()) == ["job-1"]
    service.result_faults = []
    executor(service, store=tmp_path / "store", retrieve=service.job).run(circuit(4), x, 100)
    assert service.circuits == 4


def test_a_store_is_one_for_copies_and_threads(tmp_path):
    store = ResultsStore(tmp_path / "store")
    assert copy.deepcopy(store) is store
    found = []
    thread = threading.Thread(target=lambda: found.append(len(store)))
    thread.start()
    thread.join()
    assert found == [0]
    store.close()
    with pytest.raises(InvalidInputError, match="closed"):
        store.get(["a"])
