import pytest

from unbraid.ground.errors import ExecutionError, InvalidInputError
from unbraid.quantum.backends import fake_backend, ibm_executor


def test_stored_devices_are_found_by_name():
    pytest.importorskip("qiskit_ibm_runtime")
    assert (fake_backend("fake_montreal").num_qubits, fake_backend("fake_marrakesh").num_qubits) == (27, 156)
    with pytest.raises(InvalidInputError, match=r"no backend 'montreal'.*fake_montreal"):
        fake_backend("montreal")


def test_a_service_that_fails_gives_one_clear_error(monkeypatch):
    pytest.importorskip("qiskit_ibm_runtime")

    def broken():
        raise ConnectionError("no route to host")

    monkeypatch.setattr("qiskit_ibm_runtime.QiskitRuntimeService", broken)
    with pytest.raises(ExecutionError, match=r"no route to host.*save_account"):
        ibm_executor("ibm_somewhere")
