"""``disentangle``: starts, restarts, parities and growth around the sweeps; the best run wins."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling.environments import Engine, Gates, State, stack
from unbraid.disentangling.objective import joint_ceiling, singular_values
from unbraid.disentangling.problem import ENGINES, Problem, fixed_core, scaled_core, unit_mpo
from unbraid.disentangling.result import Disentangled
from unbraid.disentangling.starts import STARTS, extended_by_identity, first_gates
from unbraid.disentangling.sweep import Callback, Runs, optimize
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.ground.files import problem_hash, read_checkpoint, write_checkpoint
from unbraid.ground.manifest import hash_tensors
from unbraid.tensors import MPO

SAVE_EVERY = 2.0  # seconds between checkpoints

_LARGER = {"so": ("so", "o", "u"), "o": ("o", "u")}  # groups that contain a group

Ansaetze = tuple[Ansatz, Ansatz]  # (output side, input side)


def disentangle(
    mpo: MPO,
    ansatz: Ansatz | tuple[Ansatz, Ansatz],
    *,
    core_bond: int = 1,
    core: str | MPO = "joint",
    start: str | Disentangled = "near_identity",
    engine: str = "auto",
    seed: int = 0,
    restarts: int = 1,
    max_sweeps: int = 1000,
    tolerance: float = 1e-7,
    dtype: torch.dtype | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> Disentangled:
    """Find circuits O, I and a core C of small bond with ``M ~ O C I``, maximising the overlap.

    Every gate in turn is replaced by the polar factor of its environment (closed form, cannot lower the overlap), with
    momentum between sweeps; once a sweep gains less than 1e-6, Riemannian L-BFGS takes over. Results have the dtype and
    device of ``mpo``.

    Args:
        mpo: M.
        ansatz: geometry of both circuits (mirrored), or a pair (output side, input side) for a rectangular M.
        core_bond: bond dimension of the core.
        core: "joint" optimises the core with the circuits; "fixed" is the paper's setting, the canonical form of M with
            the largest ``core_bond`` Schmidt values a bond; an MPO is a core of your own.
        start: "near_identity" (generators of standard deviation 0.05), "identity" (a slow saddle), "random" (Haar),
            "growth": depth 1 first, then layer after layer, each new one near the identity; "greedy": from the
            outermost layer inwards, each gate pair chosen to lower the entropy of its bond. Or an earlier result, for
            this M or another of the same legs, whose circuits are the inner layers of these, of the same groups or
            smaller ones: its gates and core are where this starts.
        engine: "dense" holds matrices of the layer's size, "mpo" only chains; "auto" chooses (see
            :attr:`Disentangled.plan`).
        seed: of the starts.
        restarts: runs from different starts, side by side. After 3, 6, 12, 24 and 48 sweeps the worse half is given up
            (successive halving), and so is a run that has found the place of an earlier one, or is still behind the
            first when that has ended; never the first, so that more restarts never end lower, but for "growth", where
            each depth goes on from the best. The best one is returned. Gates of the group "o" start with random
            determinants from the second run on.
        max_sweeps: at most so many a run (a depth, with "growth"); a step of L-BFGS counts as one.
        tolerance: a run has converged when three sweeps in a row each gain less than this and the norm of the
            Riemannian gradient is below its square root.
        dtype: precision to work in: float64 (None), or float32, with dense matrices only, in half the memory; overlaps
            are then good to about 1e-5.
        checkpoint: a file to resume from if it exists, and to save to; it is kept at the end.
        callback: called with (sweeps of this run, overlap) after each sweep; returning False stops there, with "growth"
            at the depth reached so far.

    Returns:
        The best run.

    Raises:
        InvalidInputError: if M is zero or not finite, sizes do not fit, a name is unknown, or the checkpoint belongs to
            another problem.

    Source:
        Sec. IV, Eqs. (2)-(4) of "Classical Neural Networks on Quantum Devices via Tensor Network Disentanglers".
    """
    if not isinstance(mpo, MPO):
        raise InvalidInputError(f"mpo must be an MPO; got {type(mpo).__name__}. For a matrix: MPO.from_dense(matrix).")
    pairs = _pairs(mpo, ansatz)
    if isinstance(start, Disentangled):
        pairs = _growing(start, pairs)
    check_options(
        mpo,
        core_bond=core_bond,
        core=core,
        start=start,
        engine=engine,
        restarts=restarts,
        max_sweeps=max_sweeps,
        tolerance=tolerance,
    )
    check_run(seed, checkpoint, callback)
    if dtype not in (None, torch.float64, torch.float32):
        raise InvalidInputError(f"dtype must be torch.float64 or torch.float32; got {dtype!r}.")
    unit, log_norm = unit_mpo(mpo)
    problem = Problem(unit, core_bond, fixed_core(mpo, core, core_bond), engine, single=dtype == torch.float32)
    identity = problem_hash(
        {
            "target": hash_tensors(*unit.cores),
            "legs": [mpo.out_dims, mpo.in_dims],
            "ansatz": [[side.to_dict() for side in pair] for pair in pairs],
            "core": [core_bond, core if isinstance(core, str) else hash_tensors(*core.cores)],
            "run": [start if isinstance(start, str) else start.fingerprint(), seed, restarts, max_sweeps, tolerance],
            "engine": [engine, str(dtype or torch.float64)],
        }
    )
    saved = _Checkpoint(checkpoint, identity, mpo.device)
    search = _Search(start, seed, restarts, max_sweeps, tolerance, saved, callback)
    best: _Outcome | None = None
    with progress.task("disentangle", len(pairs)) as advance:
        for number, pair in enumerate(pairs):
            found = _optimize(number, pair, problem, search)
            if best is None or _overlap(found[0]) > _overlap(best[0]):
                best = found
            advance(note=f"overlap {_overlap(best[0]):.4f}")
            if found[0].stopped:
                break
    assert best is not None
    return _result(mpo, log_norm, problem, best)


_Outcome = tuple[Runs, Engine, Ansaetze]


def _overlap(runs: Runs) -> float:
    return float(runs.accepted.overlap[runs.best])


def _optimize(number: int, pair: Ansaetze, problem: Problem, search: _Search) -> _Outcome:
    """All restarts of one geometry: a single optimisation, or one a depth with "growth"."""
    deepest = max(side.depth for side in pair)
    depths = range(1, deepest + 1) if search.start == "growth" and deepest > 0 else [deepest]
    inner = _inner_of(search.start, problem) if isinstance(search.start, Disentangled) else None
    outcome: _Outcome | None = None
    for depth in depths:
        sides = (pair[0].truncated(depth), pair[1].truncated(depth))
        engine = problem.engine(sides)
        runs = _around(inner, f"{number}/{depth}", sides, engine, problem, search)
        inner = engine.gates(runs.accepted, runs.best)
        outcome = runs, engine, sides
        if runs.stopped:
            break
    assert outcome is not None
    return outcome


def _around(inner: Gates | None, key: str, sides: Ansaetze, engine: Engine, problem: Problem, search: _Search) -> Runs:
    """All restarts at one depth, around the gates of the innermost layers where there are some."""
    core = problem.fixed if problem.fixed is not None or inner is None else inner.core
    before = None if inner is None else (inner.output, inner.input)
    name = "growth" if isinstance(search.start, Disentangled) else search.start

    def starts() -> State:
        pairs = (first_gates(problem.unit, sides, name, search.seed, k, before) for k in range(search.restarts))
        return stack([engine.start(*pair, core) for pair in pairs])

    runs = search.run(key, engine, starts)
    if inner is None or before is None or runs.stopped:
        return runs
    if _overlap(runs) >= inner.overlap or not _only_trainable(sides, inner):
        return runs
    # The noise of the new layers led to a worse place: from where the shallower circuits are, nothing is lost.
    again = search.run(f"{key}/kept", engine, lambda: engine.start(*extended_by_identity(sides, before), core))
    return again if _overlap(again) > _overlap(runs) else runs


@dataclass(frozen=True)
class _Search:
    """How to optimise: the arguments of :func:`disentangle`."""

    start: str | Disentangled
    seed: int
    restarts: int
    max_sweeps: int
    tolerance: float
    saved: _Checkpoint
    callback: Callback | None

    def run(self, key: str, engine: Engine, starts: Callable[[], State]) -> Runs:
        """One optimisation of runs side by side, from where its checkpoint is."""
        saved = self.saved.load(key)
        return optimize(
            engine,
            Runs.starting(starts()) if saved is None else saved,
            max_sweeps=self.max_sweeps,
            tolerance=self.tolerance,
            callback=self.callback,
            save=lambda runs: self.saved.save(key, runs),
        )


def _only_trainable(sides: Ansaetze, inner: Gates) -> bool:
    """Whether the layers around the inner gates have no fixed gates."""
    return all(
        place.is_trainable
        for side, gates in zip(sides, (inner.output, inner.input), strict=True)
        for place in list(side.gates())[len(gates) :]
    )


def _growing(start: Disentangled, pairs: Sequence[Ansaetze]) -> list[Ansaetze]:
    """The geometries whose inner layers are the circuits of an earlier result."""
    earlier = [circuit.ansatz for circuit in (start.output_circuit, start.input_circuit)]
    fitting = [pair for pair in pairs if all(_begins_with(side, old) for side, old in zip(pair, earlier, strict=True))]
    if not fitting:
        raise InvalidInputError(
            "The circuits of the earlier result must be the inner layers of the new ones; they have "
            f"{earlier[0].depth} and {earlier[1].depth} layers on wires {earlier[0].wire_dims} and "
            f"{earlier[1].wire_dims}, and the first layers here differ. Use the same kind of ansatz and parity, at "
            "least as deep, with gates of the same group or a larger one."
        )
    return fitting


def _begins_with(side: Ansatz, inner: Ansatz) -> bool:
    """Whether the innermost layers of a circuit are of a geometry, their gates of the same group or a larger one."""
    first = side.truncated(inner.depth)
    sizes = [[len(layer) for layer in one.layers] for one in (first, inner)]
    return (first.wire_dims, sizes[0]) == (inner.wire_dims, sizes[1]) and all(
        new.wires == old.wires and new.name in _LARGER.get(old.name, (old.name,))
        for new, old in zip(first.gates(), inner.gates(), strict=True)
    )


def _inner_of(start: Disentangled, problem: Problem) -> Gates:
    """Gates and core of an earlier result."""
    circuits = (start.output_circuit, start.input_circuit)
    legs = (start.core.out_dims, start.core.in_dims)
    if legs != (problem.unit.out_dims, problem.unit.in_dims):
        raise InvalidInputError(f"The earlier result belongs to an MPO of other legs, {legs[0]} x {legs[1]}.")
    if start.core.dtype.is_complex and not problem.unit.dtype.is_complex:
        raise InvalidInputError("The earlier result is complex and M real; start from a real one.")
    core, _ = unit_mpo(start.core)
    if problem.fixed is None and max(core.bond_dims, default=1) > problem.core_bond:
        raise InvalidInputError(
            f"The earlier result has a core of bond {max(core.bond_dims)}, wider than core_bond={problem.core_bond}; "
            "ask for at least that."
        )
    return Gates(
        [gate.detach() for gate in circuits[0].gate_matrices()],
        [gate.detach() for gate in circuits[1].gate_matrices()],
        [c.reshape(c.shape[0], -1, c.shape[3]) for c in core.cores],
        start.overlap,
    )


def _pairs(mpo: MPO, ansatz: Ansatz | tuple[Ansatz, Ansatz]) -> list[Ansaetze]:
    """All geometries to try: the given one and its alternatives (both sides of one ansatz change together)."""
    if isinstance(ansatz, Ansatz):
        pairs = [(choice, choice) for choice in (ansatz, *ansatz.alternatives)]
    else:
        try:
            output, inward = ansatz
            pairs = [(a, b) for a in (output, *output.alternatives) for b in (inward, *inward.alternatives)]
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(
                "ansatz must be an Ansatz, or a pair (output side, input side). Texts of the layer grammar are read by "
                f"parse_ansatz(text, wires); got {ansatz!r}."
            ) from error
    for pair in pairs:
        for side, size, name in zip(pair, mpo.padded_shape, ("output", "input"), strict=True):
            if side.dimension != size:
                raise InvalidInputError(
                    f"The {name} circuit must act on {size} amplitudes; this ansatz acts on "
                    f"{side.dimension}. For a rectangular layer pass a pair (output side, input side)."
                )
            if side.joints:
                raise InvalidInputError(
                    "Explicit disentangling needs circuits without nonlinearities between segments."
                )
    return pairs


def check_options(
    mpo: MPO,
    *,
    core_bond: int,
    core: str | MPO,
    start: str | Disentangled,
    engine: str,
    restarts: int,
    max_sweeps: int,
    tolerance: float,
) -> None:
    """Refuse what makes no sense, before any work.

    Raises:
        InvalidInputError: naming the option.
    """
    if not isinstance(start, Disentangled):
        require_choice(start, STARTS, "start (if no earlier result)")
    require_choice(engine, ENGINES, "engine")
    for value, name in ((core_bond, "core_bond"), (restarts, "restarts"), (max_sweeps, "max_sweeps")):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} must be a positive integer; got {value!r}.")
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise InvalidInputError(f"tolerance must be a number, 0 or more; got {tolerance!r}.")
    if isinstance(core, str):
        require_choice(core, ("joint", "fixed"), "core (if no MPO)")
    elif not isinstance(core, MPO):
        raise InvalidInputError(f"core must be 'joint', 'fixed' or an MPO; got {type(core).__name__}.")
    elif (core.out_dims, core.in_dims) != (mpo.out_dims, mpo.in_dims):
        raise InvalidInputError(
            f"The core must have the legs of the MPO, {mpo.out_dims} x {mpo.in_dims}; got "
            f"{core.out_dims} x {core.in_dims}."
        )
    if isinstance(core, MPO) and core_bond not in (1, max(core.bond_dims, default=1)):
        raise InvalidInputError(f"core_bond={core_bond} goes with a core that is optimised or truncated; leave it out.")
    widest = max(mpo.bond_dims, default=1)
    asked = core_bond if isinstance(core, str) else max(core.bond_dims, default=1)
    if asked > widest:
        raise InvalidInputError(
            f"The core would be wider than the MPO: bond {asked} against {widest}. A core of the MPO's own bonds needs "
            "no circuits; choose a smaller core_bond."
        )


def check_run(seed: int, checkpoint: str | os.PathLike[str] | None, callback: Callback | None) -> None:
    """The same for what every long optimisation takes.

    Raises:
        InvalidInputError: naming the option.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidInputError(f"seed must be an integer; got {seed!r}.")
    if callback is not None and not callable(callback):
        raise InvalidInputError(f"callback must be a function of (sweeps, overlap); got {callback!r}.")
    if checkpoint is None:
        return
    if not isinstance(checkpoint, str | os.PathLike) or not str(checkpoint):
        raise InvalidInputError(f"checkpoint must be the path of a file; got {checkpoint!r}.")
    if Path(checkpoint).is_dir() or not Path(checkpoint).absolute().parent.is_dir():
        raise InvalidInputError(f"checkpoint must be a file in a folder that exists; got {os.fspath(checkpoint)!r}.")


def _result(mpo: MPO, log_norm: Tensor, problem: Problem, outcome: _Outcome) -> Disentangled:
    runs, engine, sides = outcome
    gates = engine.gates(runs.accepted, runs.best)
    best = runs.progress[runs.best]
    legs = zip(gates.core, mpo.out_dims, mpo.in_dims, strict=True)
    unit = MPO([core.reshape(core.shape[0], o, i, core.shape[2]) for core, o, i in legs])
    ceiling, values, of_core = None, singular_values(problem.unit), singular_values(unit)
    if values is not None and of_core is not None:
        ceiling = float(values @ of_core.to(values))
        if problem.fixed is None:
            best_core = joint_ceiling(problem.unit, problem.core_bond, values=values)
            ceiling = None if best_core is None else max(ceiling, best_core)
    overlap = min(1.0, gates.overlap)  # it may exceed 1 by rounding, and a ceiling that it reaches
    dtype = torch.promote_types(mpo.dtype, torch.complex64) if unit.dtype.is_complex else mpo.dtype
    return Disentangled(
        output_circuit=as_circuit(sides[0], gates.output, False, mpo),
        core=scaled_core([*unit.cores[:-1], unit.cores[-1] * gates.overlap], log_norm, dtype),
        input_circuit=as_circuit(sides[1], gates.input, True, mpo),
        shape=mpo.shape,
        overlap=overlap,
        ceiling=None if ceiling is None else min(1.0, max(ceiling, overlap)),
        entropies_before=problem.unit.entropies().double().cpu(),
        entropies_after=engine.entropies(runs.accepted, runs.best).double().cpu(),
        status=best.status,  # type: ignore[arg-type]
        history=tuple(min(1.0, reached) for reached in best.history),
        engine=engine.name,
        plan=engine.plan,
        overlap_error=engine.overlap_error(runs.accepted, runs.best),
        restarts=tuple(float(overlap) for overlap in runs.accepted.overlap),
    )


def as_circuit(ansatz: Ansatz, gates: Sequence[Tensor], mirrored: bool, mpo: MPO) -> Circuit:
    """A circuit of the matrices that an engine found, fixed gates included, in the precision of ``mpo``."""
    circuit = Circuit(ansatz, "identity", mirrored=mirrored, dtype=mpo.cores[0].real.dtype, device=mpo.device)
    real = [
        gate if place.name == "u" or not gate.is_complex() else gate.real
        for gate, place in zip(gates, ansatz.gates(), strict=True)
    ]
    circuit.set_gates([gate for gate, place in zip(real, ansatz.gates(), strict=True) if place.is_trainable])
    return circuit


class _Checkpoint:
    """The saved states of all optimisations of one call, in one file."""

    def __init__(self, path: str | os.PathLike[str] | None, problem: str, device: torch.device) -> None:
        self.path, self.problem, self.device = path, problem, device
        self.states: dict[str, Any] = {}
        self.saved_at = time.monotonic()
        if path is not None and Path(path).exists():
            self.states = read_checkpoint(path, problem)

    def load(self, key: str) -> Runs | None:
        """Runs as they were saved."""
        state = self.states.get(key)
        return None if state is None else Runs.from_state(state, self.device)

    def save(self, key: str, runs: Runs) -> None:
        """Now and then, and when all runs have ended."""
        if self.path is None:
            return
        ended = all(run.status != "running" for run in runs.progress)
        if ended or time.monotonic() - self.saved_at > SAVE_EVERY:
            self.states[key] = runs.state()
            write_checkpoint(self.path, self.states, self.problem)
            self.saved_at = time.monotonic()
