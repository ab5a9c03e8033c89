"""``disentangle_sum``: M as a sum of K terms O_j C_j I_j, fitted jointly; Eq. (1) of the paper with more than one term.

The first guess is deflation: each term disentangles what the terms before it leave. Then the terms take turns: a sweep
over the gates and the core of one, its target M minus all others, cannot raise the error |M - sum_j O_j C_j I_j|; nor
can the best scales of all terms, a small least-squares problem. Between rounds all gates are extrapolated along their
last change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling.environments import Engine, Gates, State, core_shapes, dense_engine
from unbraid.disentangling.environments.dense import run
from unbraid.disentangling.objective import LARGEST_DENSE
from unbraid.disentangling.problem import as_pair, scaled_core, unit_mpo
from unbraid.disentangling.result import Disentangled, Status
from unbraid.disentangling.search import SAVE_EVERY, as_circuit, check_options, check_run, disentangle
from unbraid.disentangling.sweep import LARGEST_MOMENTUM, PATIENCE
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import problem_hash, read_checkpoint, write_checkpoint
from unbraid.ground.manifest import hash_tensors
from unbraid.tensors import MPO, chain
from unbraid.tensors.legs import deinterleave

Callback = Callable[[int, float], "bool | None"]


@dataclass(frozen=True)
class SumTerm:
    """One term O C I; the core carries its scale.

    Attributes:
        output_circuit: O.
        core: C.
        input_circuit: I.
    """

    output_circuit: Circuit
    core: MPO
    input_circuit: Circuit

    @property
    def cnot_counts(self) -> tuple[int, int]:
        """CNOTs of the output and of the input circuit."""
        return self.output_circuit.cnot_count, self.input_circuit.cnot_count

    def to_padded_dense(self) -> Tensor:
        """The matrix O C I, shape (N_out, N_in)."""
        left, core, right = self.output_circuit.matrix(), self.core.to_padded_dense(), self.input_circuit.matrix()
        dtype = torch.promote_types(torch.promote_types(left.dtype, core.dtype), right.dtype)
        return (left.to(dtype) @ core.to(dtype) @ right.to(dtype)).detach()


@dataclass(frozen=True)
class DisentangledSum:
    """``M ~ sum_j O_j C_j I_j`` and the road to it.

    Attributes:
        terms: in the order in which the deflation found them.
        shape: logical (out, in) of ``M``.
        overlap: Re <M, W> / (|M| |W|) of the sum W, as Eq. (2) of the paper, over the padded matrices.
        status: "converged" (three rounds in a row gained less than the tolerance), "out_of_sweeps" or "stopped".
        history: the overlap after each term of the deflation, then after each round; it never decreases.
    """

    terms: tuple[SumTerm, ...] = field(repr=False)
    shape: tuple[int, int]
    overlap: float
    status: Status
    history: tuple[float, ...] = field(repr=False)

    @property
    def rel_error(self) -> float:
        """|M - W| / |M| in the Frobenius norm, sqrt(1 - overlap^2): the scales are the best ones."""
        return max(0.0, 1 - self.overlap**2) ** 0.5

    @property
    def cnot_counts(self) -> tuple[int, int]:
        """CNOTs of all output and of all input circuits. Summing the terms on hardware costs more than these."""
        counts = [term.cnot_counts for term in self.terms]
        return sum(count[0] for count in counts), sum(count[1] for count in counts)

    def to_dense(self) -> Tensor:
        """The matrix W, cropped to the logical shape (out, in)."""
        total = sum((term.to_padded_dense() for term in self.terms[1:]), self.terms[0].to_padded_dense())
        return total[: self.shape[0], : self.shape[1]]


def disentangle_sum(
    mpo: MPO,
    ansatz: Ansatz | tuple[Ansatz, Ansatz],
    terms: int,
    *,
    core_bond: int = 1,
    start: str = "near_identity",
    seed: int = 0,
    restarts: int = 1,
    max_sweeps: int = 1000,
    tolerance: float = 1e-7,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> DisentangledSum:
    """Find K terms ``O_j C_j I_j`` whose sum has the largest overlap with M.

    One term is what :func:`unbraid.disentangle` finds with the same arguments.

    Args:
        mpo: M; its matrix is held, so at most 4096 rows and columns.
        ansatz: geometry of the circuits of every term, as of :func:`unbraid.disentangle`.
        terms: K.
        core_bond: bond dimension of every core.
        start: of the deflation, as of :func:`unbraid.disentangle`.
        seed: of the starts.
        restarts: runs side by side a term of the deflation.
        max_sweeps: at most so many a term of the deflation, and so many rounds afterwards.
        tolerance: the rounds have converged when three in a row each gain less overlap than this.
        checkpoint: a file to resume from if it exists, and to save to; it is kept at the end.
        callback: called with (entries of the history, overlap) after each term and each round; returning False stops.
            With one term it is called as :func:`unbraid.disentangle` does.

    Raises:
        InvalidInputError: as :func:`unbraid.disentangle`, and if there is no term or the matrix is too large.

    Source:
        Eq. (1) of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers"; the paper optimises
        one term, k = 1. The joint sweeps are ours.
    """
    if isinstance(terms, bool) or not isinstance(terms, int) or terms < 1:
        raise InvalidInputError(f"terms must be a positive integer; got {terms!r}.")
    options: dict[str, Any] = {"core_bond": core_bond, "start": start, "restarts": restarts}
    options |= {"max_sweeps": max_sweeps, "tolerance": tolerance}
    if terms == 1:
        only = disentangle(mpo, ansatz, seed=seed, checkpoint=checkpoint, callback=callback, **options)
        term = SumTerm(only.output_circuit, only.core, only.input_circuit)
        return DisentangledSum((term,), only.shape, only.overlap, only.status, only.history)
    check_run(seed, checkpoint, callback)
    if not isinstance(start, str):
        raise InvalidInputError(
            "A sum starts from a name such as 'near_identity'; an earlier result has one term only."
        )
    if isinstance(mpo, MPO) and max(mpo.padded_shape) > LARGEST_DENSE:
        raise InvalidInputError(
            f"A sum of terms needs the matrix, up to {LARGEST_DENSE} rows; this MPO is {mpo.padded_shape[0]} x "
            f"{mpo.padded_shape[1]}. Use disentangle, whose single term needs chains only."
        )
    fit = _Fit(mpo, ansatz, terms, options, seed)
    where = None if checkpoint is None else Path(checkpoint)
    if where is not None and where.exists():
        fit.load(read_checkpoint(where, fit.identity))
    saved_at, status = time.monotonic(), None
    with progress.task("disentangle a sum", None) as advance:
        while status is None:
            fit.step()
            status = fit.status()
            if callback is not None and callback(len(fit.history), fit.history[-1]) is False:
                status = "stopped"
            if where is not None and (status is not None or time.monotonic() - saved_at > SAVE_EVERY):
                write_checkpoint(where, fit.state(), fit.identity)
                saved_at = time.monotonic()
            advance(note=f"overlap {fit.history[-1]:.4f}")
    return fit.result(status)


@dataclass
class _Term:
    """A term while it is optimised.

    Attributes:
        sides: its geometry.
        state: gates and core of norm 1, one run; its overlap is unused.
        scale: of the core; W_j = scale O C I.
        dense: O C I.
    """

    sides: tuple[Ansatz, Ansatz]
    state: State
    scale: Tensor
    dense: Tensor


class _Fit:
    """The deflation term by term, then rounds of joint sweeps, one :meth:`step` at a time."""

    def __init__(
        self, mpo: MPO, ansatz: Ansatz | tuple[Ansatz, Ansatz], terms: int, options: dict[str, Any], seed: int
    ) -> None:
        if not isinstance(mpo, MPO):
            raise InvalidInputError(
                f"mpo must be an MPO; got {type(mpo).__name__}. For a matrix: MPO.from_dense(matrix)."
            )
        check_options(mpo, core="joint", engine="dense", **options)
        self.mpo, self.ansatz, self.count, self.options, self.seed = mpo, ansatz, terms, options, seed
        self.unit, self.log_norm = unit_mpo(mpo)
        self.target = self.unit.to_padded_dense().contiguous()
        legs = [o * i for o, i in zip(mpo.out_dims, mpo.in_dims, strict=True)]
        self.shapes = core_shapes(legs, options["core_bond"])
        pair = as_pair(ansatz)
        self.identity = problem_hash(
            {
                "target": hash_tensors(*self.unit.cores),
                "legs": [mpo.out_dims, mpo.in_dims],
                "ansatz": [[a.to_dict() for a in (side, *side.alternatives)] for side in pair],
                "sum": [terms, sorted(options.items()), seed],
            }
        )
        self.accepted: list[_Term] = []
        self.ahead: list[_Term] = []
        self.history: list[float] = []
        self.age = 1

    def step(self) -> None:
        """The next term of the deflation, or the next round."""
        if len(self.accepted) < self.count:
            self._deflate()
        elif self.status() is None:
            self._round()

    def status(self) -> Status | None:
        """How it has ended, if it has."""
        rounds = self.history[self.count - 1 :]
        gains = [after - before for before, after in zip(rounds[-1 - PATIENCE :], rounds[-PATIENCE:], strict=False)]
        if len(rounds) > PATIENCE and max(gains) < self.options["tolerance"]:
            return "converged"
        return "out_of_sweeps" if len(rounds) > self.options["max_sweeps"] else None

    def _deflate(self) -> None:
        rest = self.target - _total(self.accepted, self.target)
        left = MPO.from_dense(rest, self.mpo.out_dims, self.mpo.in_dims)
        bond = self.options["core_bond"]
        if self.accepted:  # what is left may have smaller bonds than M
            bond = min(bond, max(left.bond_dims, default=1))
        found = disentangle(left, self.ansatz, seed=self.seed, **{**self.options, "core_bond": bond})
        sides = (found.output_circuit.ansatz, found.input_circuit.ansatz)
        core, _ = unit_mpo(found.core)
        cores = [c.reshape(c.shape[0], -1, c.shape[3]) for c in core.cores]
        state = self._engine(sides, rest).start(*_matrices(found), cores)
        self.accepted.append(self._term(sides, state, rest))
        self._rescale(self.accepted)
        self.history.append(max(self._overlap(self.accepted), *self.history, 0.0))
        self.ahead = list(self.accepted)

    def _round(self) -> None:
        """A sweep of every term, from ahead of the accepted circuits if that pays."""
        swept = self._swept(self.ahead)
        overlap = self._overlap(swept)
        if not overlap >= self.history[-1]:
            self.age = 1
            swept = self._swept(self.accepted)
            overlap = self._overlap(swept)
            if not overlap >= self.history[-1]:  # rounding: nothing is left to gain
                swept, overlap = self.accepted, self.history[-1]
        momentum = torch.tensor([min(LARGEST_MOMENTUM, (self.age - 1) / (self.age + 2))], dtype=torch.float64)
        self.ahead = []
        for before, after in zip(self.accepted, swept, strict=True):
            engine = self._engine(after.sides, self.target)
            state = engine.extrapolate(before.state, after.state, momentum)
            self.ahead.append(_Term(after.sides, state, after.scale, self._dense(engine, state)))
        self.accepted = swept
        self.history.append(overlap)
        self.age += 1

    def _swept(self, terms: list[_Term]) -> list[_Term]:
        terms = list(terms)
        for j, term in enumerate(terms):
            rest = self.target - _total(terms[:j] + terms[j + 1 :], self.target)
            state = self._engine(term.sides, rest).sweep(term.state)
            terms[j] = self._term(term.sides, state, rest)
        self._rescale(terms)
        return terms

    def _term(self, sides: tuple[Ansatz, Ansatz], state: State, rest: Tensor) -> _Term:
        """With the scale that fits ``rest`` best."""
        dense = self._dense(self._engine(sides, rest), state)
        return _Term(sides, state, (dense.conj() * rest).sum().real / (dense.abs() ** 2).sum(), dense)

    def _rescale(self, terms: list[_Term]) -> None:
        """The best scales of all terms together, in place."""
        columns = torch.stack([torch.view_as_real(t.dense + 0j).reshape(-1) for t in terms], dim=1)
        target = torch.view_as_real(self.target + 0j).reshape(-1, 1)
        scales = torch.linalg.lstsq(columns, target, driver="gelsd" if columns.device.type == "cpu" else None).solution
        for term, scale in zip(terms, scales[:, 0], strict=True):
            term.scale = scale

    def _overlap(self, terms: list[_Term]) -> float:
        total = _total(terms, self.target)
        size = torch.linalg.vector_norm(total)
        # it may exceed 1 by rounding
        return min(1.0, float((total.conj() * self.target).sum().real / size)) if size > 0 else 0.0

    def _engine(self, sides: tuple[Ansatz, Ansatz], target: Tensor) -> Engine:
        return dense_engine(
            target.contiguous(), *sides, self.mpo.out_dims, self.mpo.in_dims, self.shapes, fixed_core=False
        )

    def _dense(self, engine: Engine, state: State) -> Tensor:
        """O C I of one run."""
        gates = engine.gates(state, 0)
        matrix = deinterleave(chain.contract(gates.core), self.mpo.out_dims, self.mpo.in_dims)
        rows = run(matrix.mT, gates.output, engine.output.ansatz).mT
        return run(rows, [gate.mT for gate in gates.input], engine.inward.ansatz)

    def result(self, status: Status) -> DisentangledSum:
        """The accepted terms as circuits and MPOs."""
        found = tuple(self._as_term(term) for term in self.accepted)
        return DisentangledSum(found, self.mpo.shape, self.history[-1], status, tuple(self.history))

    def _as_term(self, term: _Term) -> SumTerm:
        gates: Gates = self._engine(term.sides, self.target).gates(term.state, 0)
        legs = zip(gates.core, self.mpo.out_dims, self.mpo.in_dims, strict=True)
        cores = [core.reshape(core.shape[0], o, i, core.shape[2]) for core, o, i in legs]
        wide = cores[0].is_complex()
        dtype = self.mpo.dtype if not wide else torch.promote_types(self.mpo.dtype, torch.complex64)
        sides = zip(term.sides, (gates.output, gates.input), (False, True), strict=True)
        circuits = [as_circuit(side, matrices, mirrored, self.mpo) for side, matrices, mirrored in sides]
        scaled = scaled_core([*cores[:-1], cores[-1] * term.scale], self.log_norm, dtype)
        return SumTerm(circuits[0], scaled, circuits[1])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        lists = {name: [_saved(term) for term in getattr(self, name)] for name in ("accepted", "ahead")}
        return {**lists, "history": self.history, "age": self.age}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        device = self.mpo.device
        for name in ("accepted", "ahead"):
            setattr(self, name, [_loaded(term, device) for term in state[name]])
        self.history, self.age = state["history"], state["age"]


def _matrices(found: Disentangled) -> tuple[list[Tensor], list[Tensor]]:
    output, inward = (
        [gate.detach().to(torch.complex128 if gate.is_complex() else torch.float64) for gate in circuit.gate_matrices()]
        for circuit in (found.output_circuit, found.input_circuit)
    )
    return output, inward


def _total(terms: Sequence[_Term], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for term in terms:
        total = total + term.scale * term.dense
    return total


def _saved(term: _Term) -> dict[str, Any]:
    sides = [side.to_dict() for side in term.sides]
    return {"sides": sides, "state": dict(vars(term.state)), "scale": term.scale, "dense": term.dense}


def _loaded(saved: dict[str, Any], device: torch.device) -> _Term:
    output, inward = (Ansatz.from_dict(side) for side in saved["sides"])
    state = State(**saved["state"]).to(device)
    return _Term((output, inward), state, saved["scale"].to(device), saved["dense"].to(device))
