"""Compiled loops for circuits of CNOT units: sweeps, and what adding or removing a unit would give at once.

A unit is a CNOT on two neighbouring wires followed, away from the core, by a rotation on each: (R(a) x R(b)) CNOT with
R(t) = [[cos t, -sin t], [sin t, cos t]]. Its environment E (Eq. (3) of "Classical Neural Networks on Quantum Devices
via Tensor Network Disentanglers") sees it through a form bilinear in (cos a, sin a) and (cos b, sin b), which is a sum
of one cosine of a + b and one of a - b: both angles have their best values in closed form. The sum and the difference,
each modulo 2 pi, name the gate uniquely, so they are what is stored.

Legend: side 0 is the output circuit, side 1 the input circuit (transposed, so that both act on rows from the core
outwards, as in :mod:`.environments.kernels`). A unit's code is 2 * wire + orientation; orientation 1 has its control on
the second wire.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unbraid.disentangling.environments import kernels
from unbraid.disentangling.environments.compiling import compiled
from unbraid.disentangling.environments.kernels import Array, Chain, contract, fit, transpose

_rotate, _rotate_and_correlate = kernels._rotate_4, kernels._rotate_and_correlate_4

LARGEST_MOMENTUM = 0.97
_ROUNDS = 4  # alternations between the rotations before and after a trial CNOT


class Wires(NamedTuple):
    """Where units see the rows of a matrix.

    Attributes:
        rows: N_out.
        columns: N_in.
        inner: length of the rows that a unit on a wire mixes, shape (2, wires).
        starts: offsets of the blocks of rows, of all sides and wires in turn.
        firsts: where those of a side and a wire begin, shape (2, wires + 1).
    """

    rows: int
    columns: int
    inner: Array
    starts: Array
    firsts: Array


@compiled
def _turn(rotations: Array, into: Array) -> None:
    """Into <- R(a) x R(b), rotations = (a + b, a - b)."""
    a, b = (rotations[0] + rotations[1]) / 2, (rotations[0] - rotations[1]) / 2
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    first, second = ((ca, -sa), (sa, ca)), ((cb, -sb), (sb, cb))
    for i in range(4):
        for j in range(4):
            into[i, j] = first[i >> 1][j >> 1] * second[i & 1][j & 1]


@compiled
def _permute(gate: Array, code: int) -> None:
    """Gate <- gate CNOT."""
    p = 2 if code & 1 == 0 else 1
    for i in range(4):
        gate[i, p], gate[i, 3] = gate[i, 3], gate[i, p]


@compiled
def unit(code: int, rotations: Array, into: Array) -> None:
    """Into <- the matrix of a unit, shape (4, 4)."""
    _turn(rotations, into)
    _permute(into, code)


@compiled
def _best(e: Array, rotations: Array) -> Any:
    """Rotations <- those of the largest <e, R(a) x R(b)>; returns it."""
    f00 = e[0, 0] + e[1, 1] + e[2, 2] + e[3, 3]
    f01 = e[1, 0] - e[0, 1] + e[3, 2] - e[2, 3]
    f10 = e[2, 0] - e[0, 2] + e[3, 1] - e[1, 3]
    f11 = e[0, 3] - e[1, 2] - e[2, 1] + e[3, 0]
    rotations[0] = np.arctan2(f01 + f10, f00 - f11)
    rotations[1] = np.arctan2(f10 - f01, f00 + f11)
    return (np.hypot(f01 + f10, f00 - f11) + np.hypot(f10 - f01, f00 + f11)) / 2


@compiled
def _blocks(wires: Wires, side: int, wire: int) -> Array:
    return wires.starts[wires.firsts[side, wire] : wires.firsts[side, wire + 1]]


@compiled
def _act(x: Array, side: int, code: int, gate: Array, wires: Wires) -> None:
    _rotate(x, gate, _blocks(wires, side, code >> 1), wires.inner[side, code >> 1])


@compiled
def _strip_side(x: Array, side: int, count: int, codes: Array, rotations: Array, wires: Wires) -> None:
    """X <- (g_m ... g_0)^T x."""
    gate = np.empty((4, 4), x.dtype)
    for k in range(count - 1, -1, -1):
        unit(codes[side, k], rotations[side, k], gate)
        _act(x, side, codes[side, k], gate.T.copy(), wires)


@compiled
def strip(target: Array, counts: Array, codes: Array, rotations: Array, wires: Wires, work: Array) -> Array:
    """(O^T M I^T)^T, flat, shape (columns * rows,); ``work`` is overwritten."""
    work[:] = target
    stripped = np.empty_like(target)
    _strip_side(work, 0, counts[0], codes, rotations, wires)
    transpose(work, wires.rows, wires.columns, stripped)
    _strip_side(stripped, 1, counts[1], codes, rotations, wires)
    return stripped


@compiled
def _sweep_side(bra: Array, ket: Array, side: int, count: int, codes: Array, rotations: Array, wires: Wires) -> None:
    """Every unit there and back; ``bra`` with all units taken off, ``ket`` with none put on, at both ends."""
    gate, environment = np.empty((4, 4), bra.dtype), np.empty((4, 4), bra.dtype)
    for k in range(count):
        code = codes[side, k]
        blocks, inner = _blocks(wires, side, code >> 1), wires.inner[side, code >> 1]
        unit(code, rotations[side, k], gate)
        _rotate_and_correlate(bra, ket, gate, blocks, inner, environment)
        _permute(environment, code)
        _best(environment, rotations[side, k])
        unit(code, rotations[side, k], gate)
        _rotate(ket, gate, blocks, inner)
    for k in range(count - 1, -1, -1):
        code = codes[side, k]
        blocks, inner = _blocks(wires, side, code >> 1), wires.inner[side, code >> 1]
        unit(code, rotations[side, k], gate)
        _rotate_and_correlate(ket, bra, gate.T.copy(), blocks, inner, environment)
        turned = environment.T.copy()
        _permute(turned, code)
        _best(turned, rotations[side, k])
        unit(code, rotations[side, k], gate)
        _rotate(bra, gate.T.copy(), blocks, inner)


@compiled
def fit_core(
    target: Array, counts: Array, codes: Array, rotations: Array, core: Array, wires: Wires, chain: Chain, passes: int
) -> Any:
    """Fit the core to the circuits as they are; returns the overlap."""
    work = np.empty_like(target)
    stripped = strip(target, counts, codes, rotations, wires, work)
    transpose(stripped, wires.columns, wires.rows, work)
    return fit(work, core, chain, passes)


@compiled
def sweep(target: Array, counts: Array, codes: Array, rotations: Array, core: Array, wires: Wires, chain: Chain) -> Any:
    """All units of both circuits there and back, then the core; returns the overlap.

    Args:
        target: M, flat, shape (rows * columns,), of norm 1.
        counts: units of each side, shape (2,).
        codes: shape (2, capacity).
        rotations: sums and differences of angles, shape (2, capacity, 2); overwritten.
        core: flat; overwritten.
        wires: where units see the matrix.
        chain: shapes of the core.
    """
    work, ket = np.empty_like(target), np.empty_like(target)
    bra = strip(target, counts, codes, rotations, wires, work)
    contract(core, chain, work)
    transpose(work, wires.rows, wires.columns, ket)
    _sweep_side(bra, ket, 1, counts[1], codes, rotations, wires)
    transpose(bra, wires.columns, wires.rows, work)
    transpose(ket, wires.columns, wires.rows, bra)
    _sweep_side(work, bra, 0, counts[0], codes, rotations, wires)
    return fit(work, core, chain, 1)


@compiled
def improve(
    target: Array,
    counts: Array,
    codes: Array,
    rotations: Array,
    core: Array,
    wires: Wires,
    chain: Chain,
    sweeps: int,
    tolerance: float,
    overlaps: Array,
) -> int:
    """Sweeps with momentum of each of a batch of runs, returns how many; no overlap of an accepted sweep falls.

    Args:
        target: as of :func:`sweep`.
        counts: shape (runs, 2).
        codes: shape (runs, 2, capacity).
        rotations: shape (runs, 2, capacity, 2); overwritten.
        core: shape (runs, entries); overwritten.
        wires: as of :func:`sweep`.
        chain: as of :func:`sweep`.
        sweeps: at most so many a run.
        tolerance: a run ends when three sweeps in a row gain less.
        overlaps: shape (runs,); overwritten.
    """
    turn = 2 * np.pi
    done = 0
    for r in range(len(counts)):
        ahead, ahead_core = rotations[r].copy(), core[r].copy()
        best = -np.inf
        age, quiet = 1, 0
        for _ in range(sweeps):
            done += 1
            found = sweep(target, counts[r], codes[r], ahead, ahead_core, wires, chain)
            if not found >= best:
                if age == 1:  # a sweep from the accepted circuits loses by rounding alone: nothing is left to gain
                    break
                age = 1
                ahead[:] = rotations[r]
                ahead_core[:] = core[r]
                continue
            quiet = quiet + 1 if found - best < tolerance else 0
            momentum = min(LARGEST_MOMENTUM, (age - 1) / (age + 2))
            for side in range(2):
                for k in range(counts[r, side]):
                    for j in range(2):
                        new, old = ahead[side, k, j], rotations[r, side, k, j]
                        change = new - old - turn * np.round((new - old) / turn)
                        rotations[r, side, k, j] = new
                        ahead[side, k, j] = new + momentum * change
            core[r] = ahead_core
            best = found
            age += 1
            if quiet >= 3:
                break
        overlaps[r] = best
    return done


@compiled
def additions(
    target: Array,
    counts: Array,
    codes: Array,
    rotations: Array,
    core: Array,
    wires: Wires,
    chain: Chain,
    side: int,
    free: bool,
    values: Array,
    trials: Array,
) -> None:
    """What one more CNOT, with the best rotations before and after it, would give with all else as it is.

    Args:
        target: as of :func:`sweep`.
        counts: as of :func:`sweep`.
        codes: as of :func:`sweep`.
        rotations: as of :func:`sweep`.
        core: as of :func:`sweep`.
        wires: as of :func:`sweep`.
        chain: as of :func:`sweep`.
        side: that gets the CNOT.
        free: whether there are rotations; only then one orientation is enough.
        values: overlap by position (units inside of it) and code, shape (capacity + 1, codes); overwritten.
        trials: rotations after and before it, shape (capacity + 1, codes, 2, 2); overwritten if free.
    """
    bra, ket = _both(target, counts, codes, rotations, core, wires, chain, side)
    gate, environment, dressed = np.empty((4, 4), bra.dtype), np.empty((4, 4), bra.dtype), np.empty((4, 4), bra.dtype)
    same = np.eye(4, dtype=bra.dtype)
    for p in range(counts[side] + 1):
        for code in range(values.shape[1]):
            wire = code >> 1
            if wires.inner[side, wire] == 0 or (free and code & 1 == 1):
                continue
            _rotate_and_correlate(bra, ket, same, _blocks(wires, side, wire), wires.inner[side, wire], environment)
            if not free:
                _permute(environment, code)
                values[p, code] = np.trace(environment)
                continue
            values[p, code] = -np.inf
            after, before = np.zeros(2, bra.dtype), np.zeros(2, bra.dtype)
            for start in range(4):  # of the rotations before it: 0 or 90 degrees each
                a, b = np.pi / 2 * (start >> 1), np.pi / 2 * (start & 1)
                before[0], before[1] = a + b, a - b
                found = -np.inf
                for _ in range(_ROUNDS):
                    _turn(before, gate)
                    dressed[:] = np.dot(environment, gate.T.copy())  # <E, A C B> = <E B^T C^T, A>
                    _permute(dressed, code)
                    _best(dressed, after)
                    unit(code, after, gate)
                    dressed[:] = np.dot(gate.T.copy(), environment)  # = <(A C)^T E, B>
                    found = _best(dressed, before)
                if found > values[p, code]:
                    values[p, code] = found
                    trials[p, code, 0] = after
                    trials[p, code, 1] = before
        if p < counts[side]:
            unit(codes[side, p], rotations[side, p], gate)
            _act(bra, side, codes[side, p], gate, wires)
            _act(ket, side, codes[side, p], gate, wires)


@compiled
def removals(
    target: Array,
    counts: Array,
    codes: Array,
    rotations: Array,
    core: Array,
    wires: Wires,
    chain: Chain,
    side: int,
    free: bool,
    values: Array,
    trials: Array,
) -> None:
    """What rotations alone in the place of a unit would give with all else as it is.

    Args:
        target: as of :func:`sweep`.
        counts: as of :func:`sweep`.
        codes: as of :func:`sweep`.
        rotations: as of :func:`sweep`.
        core: as of :func:`sweep`.
        wires: as of :func:`sweep`.
        chain: as of :func:`sweep`.
        side: that loses a unit.
        free: whether there are rotations.
        values: overlap by unit, shape (capacity,); overwritten.
        trials: the rotations, shape (capacity, 2); overwritten if free.
    """
    bra, ket = _both(target, counts, codes, rotations, core, wires, chain, side)
    gate, environment = np.empty((4, 4), bra.dtype), np.empty((4, 4), bra.dtype)
    for k in range(counts[side]):
        code = codes[side, k]
        unit(code, rotations[side, k], gate)
        blocks, inner = _blocks(wires, side, code >> 1), wires.inner[side, code >> 1]
        _rotate_and_correlate(bra, ket, gate, blocks, inner, environment)
        values[k] = _best(environment, trials[k]) if free else np.trace(environment)
        _act(ket, side, code, gate, wires)


@compiled
def _both(
    target: Array, counts: Array, codes: Array, rotations: Array, core: Array, wires: Wires, chain: Chain, side: int
) -> Any:
    """M stripped of both circuits and the core alone, as a side sees them."""
    work, ket = np.empty_like(target), np.empty_like(target)
    bra = strip(target, counts, codes, rotations, wires, work)
    contract(core, chain, ket)
    if side == 1:
        transpose(ket, wires.rows, wires.columns, work)
        return bra, work
    transpose(bra, wires.columns, wires.rows, work)
    return work, ket
