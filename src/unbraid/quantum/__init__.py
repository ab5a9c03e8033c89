"""Circuits on simulators and quantum computers: the only room that imports Qiskit."""

from unbraid.quantum.backends import fake_backend, ibm_executor
from unbraid.quantum.convert import from_qasm3, from_qiskit, read_qpy, to_qasm3, to_qiskit, write_qpy
from unbraid.quantum.cost import Cost, count_gates, estimate_cost
from unbraid.quantum.encode import Encoded, MPSEncoding, encode
from unbraid.quantum.execute import Execution, TorchExecutor
from unbraid.quantum.hybrid import QuantumLinear, Stage, to_quantum
from unbraid.quantum.mitigation import Learned, Polynomial
from unbraid.quantum.natural import NaturalExecution, natural_circuit, run_natural
from unbraid.quantum.pennylane import from_pennylane, to_pennylane
from unbraid.quantum.readout import ReadOut, read_out
from unbraid.quantum.reference import Reference
from unbraid.quantum.samplers import AerExecutor, SamplerExecutor
from unbraid.quantum.shot_noise import shot_noise
from unbraid.quantum.signs import Signs
from unbraid.quantum.store import ResultsStore
from unbraid.quantum.synthesis import synthesize_orthogonal
from unbraid.quantum.tomography import Tomography

__all__ = [
    "AerExecutor",
    "Cost",
    "Encoded",
    "Execution",
    "Learned",
    "MPSEncoding",
    "NaturalExecution",
    "Polynomial",
    "QuantumLinear",
    "ReadOut",
    "Reference",
    "ResultsStore",
    "SamplerExecutor",
    "Signs",
    "Stage",
    "Tomography",
    "TorchExecutor",
    "count_gates",
    "encode",
    "estimate_cost",
    "fake_backend",
    "from_pennylane",
    "from_qasm3",
    "from_qiskit",
    "ibm_executor",
    "natural_circuit",
    "read_out",
    "read_qpy",
    "run_natural",
    "shot_noise",
    "synthesize_orthogonal",
    "to_pennylane",
    "to_qasm3",
    "to_qiskit",
    "to_quantum",
    "write_qpy",
]
