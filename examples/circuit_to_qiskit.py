"""From an ansatz to a circuit, to Qiskit, to OpenQASM 3, and back; all four have the same matrix.

Simulated: the matrices are compared, nothing runs on a device.
"""

import numpy as np
from qiskit.quantum_info import Operator

import unbraid as ub


def main() -> None:
    """Convert there and back and compare."""
    ansatz = ub.parse_ansatz("1b+cnot+2b+3b", 4)
    circuit = ub.Circuit(ansatz, init="random", seed=7)
    matrix = circuit.matrix().detach().double().numpy()
    print(f"{ansatz.depth} layers on {len(ansatz.wire_dims)} qubits, {circuit.num_parameters} parameters")

    qc = ub.to_qiskit(circuit)
    print(f"Qiskit: {dict(sorted(qc.count_ops().items()))}, depth {qc.depth()}")

    text = ub.to_qasm3(circuit)
    print(f"OpenQASM 3: {len(text.splitlines())} lines, the first: {text.splitlines()[0]}")

    read = ub.quantum.from_qasm3(text)
    again = ub.Circuit.from_qiskit(read)
    for name, found in (
        ("Qiskit", Operator(qc).data),
        ("OpenQASM 3", Operator(read).data),
        ("read back", again.matrix().detach().numpy()),
    ):
        difference = np.abs(found - matrix).max()
        print(
            f"{name:>10}: {'equal' if difference < 1e-5 else f'differs by {difference:.1e}'} (to rounding in float32)"
        )


if __name__ == "__main__":
    main()
