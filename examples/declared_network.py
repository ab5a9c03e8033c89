"""A network of operators and circuits from a declaration: counted, trained, started explicitly, trained on.

Runs offline on the 8x8 digits that scikit-learn brings along; simulated, without shots.
"""

import torch

import unbraid as ub
from unbraid.nn import Architecture, TensorLayer, accuracy, start_from
from unbraid.recipes.datasets import load_dataset

QUBITS = (2,) * 6


def declared(bond: int, circuit: str = "") -> Architecture:
    """64 -> 64 with these circuits on both sides, batch norm, ReLU, 64 -> 10."""
    return Architecture(
        (
            TensorLayer(QUBITS, QUBITS, bond, input_circuit=circuit, output_circuit=circuit),
            TensorLayer((64,), (10,), 1, norm=False, relu=False),
        )
    )


def main() -> None:
    """Two declarations; the second starts from the first."""
    torch.set_num_threads(1)
    data = load_dataset("digits", seed=0)
    operators, circuits = declared(2), declared(1, "2*(cnot+1b)")
    print(circuits.describe())

    trained = operators.build(seed=0)
    ub.heal(trained, data.train, data.validation, epochs=30, lr=2e-2)
    hybrid = start_from(trained, circuits)
    started = accuracy(hybrid, *data.test)
    ub.heal(hybrid, data.train, data.validation, epochs=30, lr=2e-2)

    print(f"bond 2: {operators.num_parameters} parameters, {accuracy(trained, *data.test):.1%} of the test images")
    print(
        f"bond 1 with circuits: {circuits.num_parameters} parameters, {accuracy(hybrid, *data.test):.1%} "
        f"({started:.1%} before healing)"
    )
    print(ub.estimate_cost(ub.to_quantum(hybrid), 1).describe())


if __name__ == "__main__":
    main()
