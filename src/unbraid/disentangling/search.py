"""``disentangle``: starts, restarts, parities and growth around the sweeps; the best run wins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbraid.circuits import Ansatz, Circuit
from unbraid.disentangling.dense import DenseEngine, Gates
from unbraid.disentangling.objective import LARGEST_DENSE, joint_ceiling, spectral_ceiling
from unbraid.disentangling.result import Disentangled
from unbraid.disentangling.sweep import Callback, Run, optimize, resumed
from unbraid.ground import progress
from unbraid.ground.errors import InvalidInputError, require_choice
from unbraid.ground.files import problem_hash, read_checkpoint, write_checkpoint
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream_seed
from unbraid.tensors import MPO

STARTS = ("near_identity", "identity", "random", "growth")
SAVE_EVERY = 20  # sweeps between checkpoints

Ansaetze = tuple[Ansatz, Ansatz]  # (output side, input side)


def disentangle(
    mpo: MPO,
    ansatz: Ansatz | tuple[Ansatz, Ansatz],
    *,
    core_bond: int = 1,
    core: str | MPO = "joint",
    start: str = "near_identity",
    engine: str = "auto",
    seed: int = 0,
    restarts: int = 1,
    max_sweeps: int = 1000,
    tolerance: float = 1e-7,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> Disentangled:
    """Find circuits O, I and a core C of small bond with ``M ~ O C I``, maximising the overlap.

    Every gate in turn is replaced by the polar factor of its environment (closed form, cannot lower the overlap), with
    momentum between sweeps. Work is done in float64; results have the dtype and device of ``mpo``.

    Args:
        mpo: M.
        ansatz: geometry of both circuits (mirrored), or a pair (output side, input side) for a rectangular M.
        core_bond: bond dimension of the core.
        core: "joint" optimises the core with the circuits; "fixed" is the paper's setting, the canonical form of M with
            the largest ``core_bond`` Schmidt values a bond; an MPO is a core of your own.
        start: "near_identity" (generators of standard deviation 0.05), "identity" (a slow saddle), "random" (Haar), or
            "growth": depth 1 first, then layer after layer, each new one near the identity.
        engine: "dense"; "auto" is the same at the sizes that dense environments can hold.
        seed: of the starts.
        restarts: runs from different starts; the best one is returned. Gates of the group "o" start with random
            determinants from the second run on.
        max_sweeps: at most so many a run (a depth, with "growth").
        tolerance: converged when three sweeps in a row each gain less than this.
        checkpoint: a file to resume from if it exists, and to save to; it is kept at the end.
        callback: called with (sweeps of this run, overlap) after each sweep; returning False stops.

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
    _check(mpo, core_bond, core, start, engine, restarts, max_sweeps, tolerance)
    target = _normalized(mpo)
    fixed = _fixed_core(mpo, core, core_bond)
    problem = problem_hash(
        {
            "target": hash_tensors(target),
            "legs": [mpo.out_dims, mpo.in_dims],
            "ansatz": [[side.to_dict() for side in pair] for pair in pairs],
            "core": [core_bond, core if isinstance(core, str) else hash_tensors(*core.cores)],
            "run": [start, seed, restarts, max_sweeps, tolerance],
        }
    )
    saved = _Checkpoint(checkpoint, problem)
    runs = [(pair, restart) for pair in pairs for restart in range(restarts)]
    best: tuple[Run, DenseEngine] | None = None
    with progress.task("disentangle", len(runs)) as advance:
        for number, (pair, restart) in enumerate(runs):
            engine_used, run = _run(
                number,
                pair,
                restart,
                target,
                mpo,
                fixed,
                core_bond,
                start,
                seed,
                max_sweeps,
                tolerance,
                saved,
                callback,
            )
            if best is None or run.accepted.overlap > best[0].accepted.overlap:
                best = (run, engine_used)
            advance(note=f"overlap {best[0].accepted.overlap:.4f}")
            if run.status == "stopped":
                break
    assert best is not None
    return _result(mpo, *best, joint=core == "joint", core_bond=core_bond)


def _run(
    number: int,
    pair: Ansaetze,
    restart: int,
    target: Tensor,
    mpo: MPO,
    fixed: list[Tensor] | None,
    core_bond: int,
    start: str,
    seed: int,
    max_sweeps: int,
    tolerance: float,
    saved: _Checkpoint,
    callback: Callback | None,
) -> tuple[DenseEngine, Run]:
    """One run: a single optimisation, or one a depth with "growth"."""
    deepest = max(side.depth for side in pair)
    depths = list(range(1, deepest + 1)) if start == "growth" and deepest > 0 else [deepest]
    previous: Gates | None = None
    outcome: tuple[DenseEngine, Run] | None = None
    for depth in depths:
        output, inward = (side.truncated(depth) for side in pair)
        engine = DenseEngine(target, output, inward, mpo.out_dims, mpo.in_dims, fixed_core=fixed is not None)
        run = saved.load(number, depth, target.device)
        if run is None:
            path = ("disentangle", number, depth)
            gates = Gates(
                _start_gates(output, start, stream_seed(seed, *path, "output"), restart, False, previous),
                _start_gates(inward, start, stream_seed(seed, *path, "input"), restart, True, previous),
                fixed if fixed is not None else previous.core if previous is not None else [],
                0.0,
            ).to(target.device)
            if fixed is None and previous is None:
                gates = Gates(gates.output, gates.input, engine.truncated_core(gates, core_bond), 0.0)
            gates = engine.evaluate(gates)
            run = Run(accepted=gates, current=gates)
        run = optimize(
            engine,
            run,
            max_sweeps=max_sweeps,
            tolerance=tolerance,
            callback=callback,
            save=lambda state, depth=depth: saved.save(number, depth, state),  # type: ignore[misc]
        )
        previous, outcome = run.accepted, (engine, run)
        if run.status == "stopped":
            break
    assert outcome is not None
    return outcome


def _start_gates(
    ansatz: Ansatz, start: str, seed: int, restart: int, mirrored: bool, previous: Gates | None
) -> list[Tensor]:
    init = "near_identity" if start == "growth" else start
    circuit = Circuit(ansatz, init, seed, mirrored=mirrored, dtype=torch.float64)
    gates = [gate.detach() for gate in circuit.gate_matrices()]
    if restart > 0:
        generator = torch.Generator().manual_seed(seed)
        for k, place in enumerate(ansatz.gates()):
            if place.name == "o" and bool(torch.rand((), generator=generator) < 0.5):
                gates[k] = torch.cat([-gates[k][:1], gates[k][1:]])
    if previous is not None:
        inner = previous.input if mirrored else previous.output
        gates[: len(inner)] = inner
    return gates


def _pairs(mpo: MPO, ansatz: Ansatz | tuple[Ansatz, Ansatz]) -> list[Ansaetze]:
    """All geometries to try: the given one and its alternatives (both sides of one ansatz change together)."""
    if isinstance(ansatz, Ansatz):
        pairs = [(choice, choice) for choice in (ansatz, *ansatz.alternatives)]
    else:
        try:
            output, inward = ansatz
            pairs = [(a, b) for a in (output, *output.alternatives) for b in (inward, *inward.alternatives)]
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError("ansatz must be an Ansatz, or a pair (output side, input side).") from error
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


def _check(
    mpo: MPO,
    core_bond: int,
    core: str | MPO,
    start: str,
    engine: str,
    restarts: int,
    max_sweeps: int,
    tolerance: float,
) -> None:
    require_choice(start, STARTS, "start")
    require_choice(engine, ("auto", "dense"), "engine")
    for value, name in ((core_bond, "core_bond"), (restarts, "restarts"), (max_sweeps, "max_sweeps")):
        if not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} must be a positive integer; got {value!r}.")
    if not tolerance >= 0:
        raise InvalidInputError(f"tolerance must be 0 or more; got {tolerance!r}.")
    if isinstance(core, str):
        require_choice(core, ("joint", "fixed"), "core (if no MPO)")
    elif not isinstance(core, MPO):
        raise InvalidInputError(f"core must be 'joint', 'fixed' or an MPO; got {type(core).__name__}.")
    elif (core.out_dims, core.in_dims) != (mpo.out_dims, mpo.in_dims):
        raise InvalidInputError(
            f"The core must have the legs of the MPO, {mpo.out_dims} x {mpo.in_dims}; got "
            f"{core.out_dims} x {core.in_dims}."
        )
    if max(mpo.padded_shape) > LARGEST_DENSE:
        raise InvalidInputError(
            f"Dense environments reach {int(log10(LARGEST_DENSE) / log10(2))} qubits a side; this MPO is "
            f"{mpo.padded_shape[0]} x {mpo.padded_shape[1]}. Disentangle a smaller layer."
        )


def _normalized(mpo: MPO) -> Tensor:
    """M as a dense matrix of norm 1, float64 or complex128."""
    centered = mpo.detach().to(torch.complex128 if mpo.dtype.is_complex else torch.float64).canonicalize(0)
    dense = (centered * torch.exp(-centered.log_scale)).to_padded_dense()
    size = torch.linalg.vector_norm(dense)
    if size == 0 or not torch.isfinite(size):
        raise InvalidInputError(
            "This MPO is zero or not finite: there is nothing to disentangle. Check the layer's weights."
        )
    return dense / size


def _fixed_core(mpo: MPO, core: str | MPO, core_bond: int) -> list[Tensor] | None:
    """The core of norm 1 as three-leg cores, or None for a joint core."""
    if core == "joint":
        return None
    chosen = mpo.compress(max_bond=core_bond) if core == "fixed" else core
    assert isinstance(chosen, MPO)
    dtype = torch.complex128 if mpo.dtype.is_complex else torch.float64
    last = chosen.num_sites - 1
    centered = chosen.detach().to(dtype).canonicalize(last)
    if float(centered.cores[last].abs().max()) == 0:
        raise InvalidInputError("The core is zero: it has no overlap with anything.")
    return [c.reshape(c.shape[0], -1, c.shape[3]).to(mpo.device) for c in centered.cores]


def _result(mpo: MPO, run: Run, engine: DenseEngine, *, joint: bool, core_bond: int) -> Disentangled:
    gates = run.accepted
    norm = mpo.detach().to(torch.complex128 if mpo.dtype.is_complex else torch.float64).canonicalize(0).log_scale
    unit = MPO(
        [c.reshape(c.shape[0], o, i, c.shape[2]) for c, o, i in zip(gates.core, mpo.out_dims, mpo.in_dims, strict=True)]
    )
    scaled = MPO([*unit.cores[:-1], unit.cores[-1] * gates.overlap], log_scale=norm)
    ceiling = spectral_ceiling(mpo, unit)
    if joint and ceiling is not None:
        ceiling = max(ceiling, joint_ceiling(mpo, core_bond) or 0.0)
    stripped = MPO.from_dense(engine.disentangled(gates), mpo.out_dims, mpo.in_dims)
    return Disentangled(
        output_circuit=_circuit(engine.output_ansatz, gates.output, False, mpo),
        core=scaled.balanced().to(
            torch.promote_types(mpo.dtype, torch.complex64) if scaled.dtype.is_complex else mpo.dtype
        ),
        input_circuit=_circuit(engine.input_ansatz, gates.input, True, mpo),
        shape=mpo.shape,
        overlap=gates.overlap,
        ceiling=ceiling,
        entropies_before=mpo.detach().entropies().double().cpu(),
        entropies_after=stripped.entropies().cpu(),
        status=run.status,  # type: ignore[arg-type]
        history=tuple(run.history),
        engine=engine.name,
    )


def _circuit(ansatz: Ansatz, gates: Sequence[Tensor], mirrored: bool, mpo: MPO) -> Circuit:
    circuit = Circuit(ansatz, "identity", mirrored=mirrored, dtype=mpo.cores[0].real.dtype, device=mpo.device)
    circuit.set_gates([gate for gate, place in zip(gates, ansatz.gates(), strict=True) if place.is_trainable])
    return circuit


class _Checkpoint:
    """The saved state of the current run and the outcomes of those before it, in one file."""

    def __init__(self, path: str | os.PathLike[str] | None, problem: str) -> None:
        self.path, self.problem = path, problem
        self.runs: dict[str, Any] = {}
        if path is not None and Path(path).exists():
            self.runs = read_checkpoint(path, problem)

    def load(self, number: int, depth: int, device: torch.device) -> Run | None:
        state = self.runs.get(f"{number}/{depth}")
        return None if state is None else resumed(Run.from_state(state), device)

    def save(self, number: int, depth: int, run: Run) -> None:
        if self.path is None:
            return
        if run.status != "running" or len(run.history) % SAVE_EVERY == 0:
            self.runs[f"{number}/{depth}"] = run.state()
            write_checkpoint(self.path, self.runs, self.problem)
