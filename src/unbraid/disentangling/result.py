"""``Disentangled``: the outcome of an explicit disentangling, and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from unbraid.circuits import Circuit
from unbraid.ground.manifest import hash_tensors
from unbraid.tensors import MPO

Status = Literal["converged", "stalled", "out_of_sweeps", "stopped"]


@dataclass(frozen=True)
class Disentangled:
    """``M ~ O C I`` and the road to it.

    Attributes:
        output_circuit: O; acts last, on the output legs.
        core: C, with the scale that fits ``M`` best.
        input_circuit: I; acts first, on the input legs.
        shape: logical (out, in) of ``M``.
        overlap: Re <M, O C I> / (|M| |O C I|), Eq. (2) of the paper.
        ceiling: the largest overlap that any orthogonal O and I could reach: for a fixed core von Neumann's bound, for
            a joint core the best such bound found over cores of that bond. None where the matrix is too large to know.
        entropies_before: bond entropies of ``M``, in nats, shape (bonds,).
        entropies_after: bond entropies of ``O^T M I^T`` before truncation to the core's bonds, shape (bonds,).
        status: "converged" (three sweeps in a row gained less than the tolerance, and the gradient is small), "stalled"
            (they gained as little, yet the gradient is not small), "out_of_sweeps", or "stopped" (by the callback).
        history: the overlap after each sweep of the best run; it never decreases.
        engine: what computed the environments, "dense" or "mpo".
        plan: the same in words: which, and why.
        overlap_error: upper bound on the error of ``overlap`` where chains were truncated; 0 if nothing was.
        restarts: overlap of every run side by side, those given up included.
    """

    output_circuit: Circuit = field(repr=False)
    core: MPO = field(repr=False)
    input_circuit: Circuit = field(repr=False)
    shape: tuple[int, int]
    overlap: float
    ceiling: float | None
    entropies_before: Tensor = field(repr=False)
    entropies_after: Tensor = field(repr=False)
    status: Status
    history: tuple[float, ...] = field(repr=False)
    engine: str = "dense"
    plan: str = field(default="", repr=False)
    overlap_error: float = 0.0
    restarts: tuple[float, ...] = field(default=(), repr=False)

    @property
    def cnot_counts(self) -> tuple[int, int]:
        """CNOTs of the output and of the input circuit as exported; determinant -1 costs one more on two qubits."""
        return self.output_circuit.cnot_count, self.input_circuit.cnot_count

    def _repr_html_(self) -> str:
        """What notebooks show: how it went, and the three factors."""
        ceiling = "unknown" if self.ceiling is None else f"{self.ceiling:.4f}"
        entropies = " &rarr; ".join(
            f"{float(each.mean()) if len(each) else 0.0:.3f}" for each in (self.entropies_before, self.entropies_after)
        )
        facts = {
            "overlap": f"{self.overlap:.4f} (ceiling {ceiling}, {self.status.replace('_', ' ')})",
            "mean bond entropy": f"{entropies} nats",
            "CNOTs": " + ".join(f"{count:,}" for count in self.cnot_counts),
            "core": f"{self.core.num_parameters:,} entries",
        }
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts.items())
        factors = {
            "output circuit, acts last": self.output_circuit._repr_svg_(),
            "core": self.core._repr_svg_(),
            "input circuit, acts first": self.input_circuit._repr_svg_(),
        }
        drawings = "".join(
            f'<p>{name}</p><div style="overflow-x:auto">{drawing}</div>' for name, drawing in factors.items()
        )
        return f"<table>{rows}</table>{drawings}"

    def fingerprint(self) -> str:
        """A hash of circuits and core."""
        gates = [gate for circuit in (self.output_circuit, self.input_circuit) for gate in circuit.gate_matrices()]
        return hash_tensors(*(gate.detach() for gate in gates), *self.core.cores)

    @property
    def rel_error(self) -> float:
        """|M - O C I| / |M| in the Frobenius norm, sqrt(1 - overlap^2): the core's scale is the best one."""
        return max(0.0, 1 - self.overlap**2) ** 0.5

    def to_dense(self) -> Tensor:
        """The matrix ``O C I``, cropped to the logical shape (out, in)."""
        factors = (self.output_circuit.matrix(), self.core.to_padded_dense(), self.input_circuit.matrix())
        dtype = reduce(torch.promote_types, (factor.dtype for factor in factors))
        dense = factors[0].to(dtype) @ factors[1].to(dtype) @ factors[2].to(dtype)
        return dense[: self.shape[0], : self.shape[1]].detach()
