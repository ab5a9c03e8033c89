import pytest
import torch

from unbraid.circuits import Circuit, brickwall
from unbraid.ground.errors import ExecutionError, InvalidInputError
from unbraid.quantum.backends import fake_backend, ibm_executor
from unbraid.quantum.readout import read_out
from unbraid.quantum.samplers import SamplerExecutor


@pytest.mark.parametrize("kind", ["SamplerV2", "executor_sampler.Sampler"])
@pytest.mark.parametrize("mode", ["job", "batch", "session"])
@pytest.mark.filterwarnings("ignore")
def test_ibms_own_samplers_run_in_every_mode(monkeypatch, tmp_path, kind, mode):
    """In the vendor's local mode, with the stored noise of a device."""
    runtime = pytest.importorskip("qiskit_ibm_runtime")
    backend, closed = fake_backend("fake_manila"), []
    for name in ("Batch", "Session"):
        monkeypatch.setattr(f"qiskit_ibm_runtime.{name}.close", lambda self: closed.append(type(self).__name__))

    class Service:
        def backends(self, **filters):
            return [backend]

        def backend(self, name):
            return backend

        def least_busy(self, **filters):
            return backend

        def job(self, name):
            raise KeyError(name)

    monkeypatch.setattr("qiskit_ibm_runtime.QiskitRuntimeService", Service)
    module, _, name = f"qiskit_ibm_runtime.{kind}".rpartition(".")
    sampler = getattr(__import__(module, fromlist=[name]), name)
    monkeypatch.setattr("unbraid.quantum.backends._sampler_class", lambda runtime: sampler)
    circuit = Circuit(brickwall(3, 1), init="random", seed=1, dtype=torch.float64)
    x = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with ibm_executor("least_busy", mode=mode, store=tmp_path / "store") as executor:
        assert isinstance(executor, SamplerExecutor)
        read = read_out(circuit, x, readout="signs", executor=executor, shots=20_000)
    assert float(torch.cosine_similarity(read.vectors, circuit(x).detach(), dim=1).min()) > 0.9
    assert closed == ([] if mode == "job" else [mode.capitalize()])
    assert executor.jobs_at_once == (5 if mode == "batch" else 1)
    assert runtime is not None


def test_a_wrong_option_opens_no_session(monkeypatch):
    pytest.importorskip("qiskit_ibm_runtime")
    opened = []

    class Service:
        def backends(self, **filters):
            return [fake_backend("fake_manila")]

        def backend(self, name):
            return fake_backend(name)

        def job(self, name):
            raise KeyError(name)

    monkeypatch.setattr("qiskit_ibm_runtime.QiskitRuntimeService", Service)
    monkeypatch.setattr("qiskit_ibm_runtime.Session", opened.append)
    for wrong in ({"store": "/not/there/f"}, {"max_circuits": 0}, {"noise_factors": (2,)}, {"seed": "a"}):
        with pytest.raises(InvalidInputError):
            ibm_executor("fake_manila", mode="session", **wrong)
    with pytest.raises(InvalidInputError, match="mode"):
        ibm_executor("fake_manila", mode="queue")
    assert opened == []


def test_stored_devices_are_found_by_name():
    pytest.importorskip("qiskit_ibm_runtime")
    assert (fake_backend("fake_montreal").num_qubits, fake_backend("fake_marrakesh").num_qubits) == (27, 156)
    with pytest.raises(InvalidInputError, match=r"no backend 'montreal'.*fake_montreal"):
        fake_backend("montreal")
    with pytest.raises(InvalidInputError, match="there are fake_"):
        fake_backend("nothing of the kind")


def test_a_service_that_fails_gives_one_clear_error(monkeypatch):
    pytest.importorskip("qiskit_ibm_runtime")

    def broken():
        raise ConnectionError("no route to host")

    monkeypatch.setattr("qiskit_ibm_runtime.QiskitRuntimeService", broken)
    with pytest.raises(ExecutionError, match=r"no route to host.*save_account"):
        ibm_executor("ibm_somewhere")
