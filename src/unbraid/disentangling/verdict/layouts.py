"""The legs of chains that are tried, and the circuits beside their cores, without parameters that change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

from unbraid.circuits import Ansatz, brickwall
from unbraid.circuits.gates import num_generators
from unbraid.tensors.sites import auto_sites, qubit_sites, qubits_for


@dataclass(frozen=True)
class Layout:
    """The legs of a chain."""

    out_dims: tuple[int, ...]
    in_dims: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of the matrices that it can hold."""
        return prod(self.out_dims), prod(self.in_dims)

    @cached_property
    def legs(self) -> list[int]:
        """Output and input leg of each site, merged."""
        return [o * i for o, i in zip(self.out_dims, self.in_dims, strict=True)]

    @property
    def key(self) -> str:
        """For the name of a file."""
        return "_".join(f"{o}x{i}" for o, i in zip(self.out_dims, self.in_dims, strict=True))

    def entries(self, bonds: Sequence[int]) -> int:
        """Of all cores."""
        return sum(left * leg * right for left, leg, right in zip([1, *bonds], self.legs, [*bonds, 1], strict=True))


def chains_for(rows: int, columns: int) -> list[Layout]:
    """Chains of one qubit a site and of legs for speed, and of neighbouring sites of either taken together."""
    found: dict[Layout, None] = {}
    for outs, ins in (qubit_sites(rows, columns), auto_sites(rows, columns)):
        for count in (len(outs), (len(outs) + 1) // 2, 2):
            if 2 <= count <= len(outs):
                found[Layout(_merged(outs, count), _merged(ins, count))] = None
    return list(found)


def _merged(dims: Sequence[int], count: int) -> tuple[int, ...]:
    edges = [len(dims) * k // count for k in range(count + 1)]
    return tuple(prod(dims[start:stop]) for start, stop in pairwise(edges))


@dataclass(frozen=True)
class Side:
    """The circuit of one side: its gates, how many of their parameters change nothing, its cuts."""

    ansatz: Ansatz
    gauge: int
    cuts: tuple[int, ...]  # wires before each bond of the core

    @classmethod
    def of(cls, dims: Sequence[int], depth: int, body: int, parity: int) -> Side:
        """A brickwall on qubits without the gates that a core of these legs, or an earlier gate, could take up."""
        sizes = [qubits_for(dim) for dim in dims]
        wires = sum(sizes)
        whole = brickwall(wires, depth, min(body, wires), parity=parity)
        # What each wire met last. A gate can pass a rotation of wires with one such predecessor on to it.
        met: list[object] = [site for site, size in enumerate(sizes) for _ in range(size)]
        layers, gauge = [], 0
        for layer in whole.layers:
            kept = []
            for gate in layer:
                shared = Counter(met[wire] for wire in gate.wires).values()
                passed = sum(num_generators("so", 2**count) for count in shared)
                if passed == num_generators("so", 2 ** len(gate.wires)):
                    continue
                gauge += passed
                kept.append(gate)
                mark = object()
                for wire in gate.wires:
                    met[wire] = mark
            layers += [tuple(kept)] if kept else []
        cuts = tuple(sum(sizes[: k + 1]) for k in range(len(sizes) - 1))
        return cls(Ansatz(whole.wire_dims, tuple(layers)), gauge, cuts)

    @property
    def parameters(self) -> int:
        """Of all gates, those that change nothing too."""
        return sum(num_generators("so", 2 ** len(gate.wires)) for gate in self.ansatz.gates())

    def reach(self, bond: int) -> int:
        """The factor by which the gates can multiply the rank across a bond of the core."""
        cut = self.cuts[bond]
        across = (gate.wires for gate in self.ansatz.gates() if gate.wires[0] < cut <= gate.wires[-1])
        return prod(4 ** min(cut - wires[0], wires[-1] + 1 - cut) for wires in across)


def sides_of(layout: Layout, depth: int, body: int, parity: int) -> tuple[Side, Side]:
    """The circuits on outputs and inputs."""
    output, inward = (Side.of(dims, depth, body, parity) for dims in (layout.out_dims, layout.in_dims))
    return output, inward
