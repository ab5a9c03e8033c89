"""The paper's networks as declarations, as far as they can be told from its text and its parameter counts.

The pictures of the architectures are not described in the text. Legs, bonds and batch norms were found by looking for
networks with exactly the printed numbers of parameters; others may have them too.

Legend: Q is a qubit; circuits of a row are (input circuit, output circuit) by the number of the layer, in the layer
grammar, the first layer of a text next to the operator.
"""

from __future__ import annotations

from collections.abc import Mapping

from unbraid.nn import Architecture, TensorLayer

Circuits = Mapping[int, tuple[str, str]]
Q = (2,)


def fig3() -> Architecture:
    """8x8 images, an operator on six sites and a dense layer; 848 parameters, 858 with a bias of the dense layer."""
    return Architecture((TensorLayer(Q * 6, Q * 6, 2), TensorLayer((64,), (10,), 1, norm=False, relu=False)))


def fig5_a(bond: int = 2) -> Architecture:
    """28x28 images: candidate A of Fig. 5, 784 -> 256 -> 64 -> 16 -> 10; 1008 parameters, 854 of bond 1.

    Its logits come through a matrix of rank 2 where all bonds are 1.
    """
    return Architecture(
        (
            TensorLayer((7, 4, 7, 4), (4,) * 4, 1, output_wires=Q * 8),
            TensorLayer(Q * 8, (*Q * 6, 1, 1), bond),
            TensorLayer(Q * 6, Q * 4, bond),
            TensorLayer(Q * 4, (10,), bond, relu=False),
        )
    )


def fig5_b(bond: int = 2, *, last_bond: int | None = None) -> Architecture:
    """28x28 images padded to 32x32: candidate B of Fig. 5, 1024 -> 256 -> 64 -> 8 -> 10; 1008 and 854 parameters too.

    Args:
        bond: of layers 2 to 4; layer 1 has 2.
        last_bond: of layer 4, if it is to differ; 36 parameters more at 2 than at 1.
    """
    return Architecture(
        (
            TensorLayer((4, 4, *Q * 6), Q * 8, 2),
            TensorLayer(Q * 8, (1, *Q * 6, 1), bond, output_wires=(*Q * 6, 1, 1)),
            TensorLayer(Q * 6, Q * 3, bond),
            TensorLayer(Q * 3, (2, 5), bond if last_bond is None else last_bond, norm=False, relu=False),
        )
    )


def fig6(bond: int = 30) -> Architecture:
    """32x32 colour images: a candidate of Fig. 6, 3072 -> 256 -> 256 -> 64 -> 10; 36,700 parameters, 24,150 at 15.

    Args:
        bond: of layers 2 to 4; layer 1 has 10.
    """
    return Architecture(
        (
            TensorLayer((32, 32, 3), (4, 4, 16), 10),
            TensorLayer(Q * 8, Q * 8, bond),
            TensorLayer(Q * 8, (*Q * 6, 1, 1), bond),
            TensorLayer(Q * 6, (1, 1, 2, 1, 1, 5), bond, norm=False, relu=False),
        )
    )


# Table 4 as literally as its words can be read, on candidate B: rows of gates that alternate as in a brickwall, except
# that rows of gates on two wires start at the first wire where the counts say so. Layer 4 has no circuits there.
_FROZEN = {1: ("cnot", "2*(cnot)")}
TABLE4: dict[str, Circuits] = {
    "only CNOTs": {**_FROZEN, 2: ("6*(cnot)", "2*(cnot)"), 3: ("cnot", "cnot")},
    "CNOTs + 1b": {**_FROZEN, 2: ("1b+cnot+1b+5*(cnot)", "cnot"), 3: ("1b", "cnot")},
    "CNOTs + 2b": {
        1: ("cnot", "cnot+2b@even"),
        2: ("3*(cnot+2b@even)", "cnot@even+2b@odd"),
        3: ("cnot", "cnot"),
    },
    "CNOTs + 1&2b, fewer": {
        1: ("cnot", "2*(cnot)"),
        2: ("3*(cnot@even+2b@odd)", "cnot@even+2b@odd"),
        3: ("cnot+1b", "cnot+1b"),
    },
    "CNOTs + 1&2b": {
        1: ("cnot", "cnot+2b@even"),
        2: ("3*(cnot+2b@even)", "cnot@even+2b@odd"),
        3: ("3*(cnot+2b@even)", "2*(cnot+2b@even)"),
    },
}

# Table 6 on the candidate of Fig. 6, likewise, where its legs have a place: behind layer 4 no two qubits are
# neighbours, and before layer 1 a second row of CNOTs would touch the leg of the three colours. Of the counts the paper
# prints three digits: 24.2k, 24.2k, 25.5k, 24.3k and 25.3k. Gates alone give 24,206 and 24,286 in the two rows with
# one-body gates; batch norms with ReLU inside of the circuits, which the text mentions, give 25,486 and 25,310. Their
# places are not told: before the outermost row they are better on validation images than in the middle (seed 0: 58.2 %
# and 59.2 % against 58.0 % and 57.9 %).
TABLE6: dict[str, Circuits] = {
    "only CNOTs": {
        1: ("cnot", "cnot"),
        2: ("3*(cnot)", "4*(cnot)"),
        3: ("4*(cnot)", "3*(cnot)"),
        4: ("cnot", ""),
    },
    "CNOTs + 1b": {
        1: ("cnot", "2*(cnot)"),
        2: ("2*(1b+cnot)+1b | bn+relu | cnot", "3*(1b+cnot)+1b | bn+relu | cnot"),
        3: ("8*(cnot)", "5*(cnot) | bn+relu | cnot"),
        4: ("cnot | bn+relu | cnot", ""),
    },
    "CNOTs + 2b": {
        1: ("cnot", ""),
        2: ("cnot+2b+cnot", "2*(cnot+2b)"),
        3: ("2*(cnot+2b)", "cnot+2b+cnot"),
        4: ("2b+cnot", ""),
    },
    "CNOTs + 1&2b": {
        1: ("cnot", "2*(cnot)"),
        2: (
            "1b+cnot+1b+2b+cnot+2b+1b+cnot | bn+relu | 1b",
            "cnot+1b+cnot+1b+cnot+2b+cnot+2b+cnot+1b+cnot+1b | bn+relu | cnot",
        ),
        3: ("8*(cnot)", "6*(cnot)"),
        4: ("2*(cnot)", ""),
    },
}
