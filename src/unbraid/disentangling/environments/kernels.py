"""Compiled loops of the dense engine: real gates on neighbouring wires, on matrices whose rows they act on.

A matrix of N rows and V columns is held flat. A gate of dimension d on wires k, ..., k + body - 1 sees it as (before,
d, inner), ``before`` the dimension of the wires above, ``inner`` that of the wires below times V, so its d rows are
contiguous runs of ``inner`` numbers and loops over them use vector instructions. ``starts`` holds the offset of each of
the ``before`` blocks: read from memory, not computed, so that the compiler cannot prove anything about them and checks
for overlapping rows once a block (it does so once for all blocks otherwise, and then vectorises nothing).

Everything is written for float64 and float32 alike. The first use compiles, for half a minute; the result is cached
on disk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unbraid.disentangling.environments.compiling import compiled

Array = NDArray[Any]

FIXED, ROTATION, ORTHOGONAL = 0, 1, 2  # what a gate may become: nothing else, SO(d), O(d)
KINDS = {"so": ROTATION, "o": ORTHOGONAL}

_TINY = 1e-14  # relative size of a singular value that counts as zero


class Side(NamedTuple):
    """One circuit as flat arrays, gate 0 next to the core; m gates.

    Attributes:
        dims: dimension of each gate, shape (m,).
        kinds: FIXED, ROTATION or ORTHOGONAL, shape (m,).
        inner: length of each gate's rows, shape (m,).
        offsets: where each gate's matrix begins in the flat gates, shape (m + 1,).
        starts: offsets of the blocks of all gates in turn.
        firsts: where each gate's blocks begin in ``starts``, shape (m + 1,).
    """

    dims: Array
    kinds: Array
    inner: Array
    offsets: Array
    starts: Array
    firsts: Array


class Chain(NamedTuple):
    """Shapes of a chain of cores (left, leg, right) held flat.

    Attributes:
        legs: shape (sites,).
        bonds: shape (sites + 1,), ones at the ends.
        offsets: where each core begins, shape (sites + 1,).
        order: position in the matrix (N_out, N_in), flat, of each entry of the contracted chain.
    """

    legs: Array
    bonds: Array
    offsets: Array
    order: Array


@compiled
def _copy(source: Array, into: Array) -> None:
    # a loop compiles in a tenth of the time of into[:] = source
    for j in range(len(source)):
        into[j] = source[j]


@compiled
def _rotate_2(x: Array, gate: Array, starts: Array, inner: int) -> None:
    g00, g01 = gate[0, 0], gate[0, 1]
    g10, g11 = gate[1, 0], gate[1, 1]
    for block in range(len(starts)):
        at = starts[block]
        x0, x1 = x[at : at + inner], x[at + inner : at + 2 * inner]
        for j in range(inner):
            a0, a1 = x0[j], x1[j]
            x0[j] = g00 * a0 + g01 * a1
            x1[j] = g10 * a0 + g11 * a1


@compiled
def _rotate_4(x: Array, gate: Array, starts: Array, inner: int) -> None:
    g00, g01, g02, g03 = gate[0, 0], gate[0, 1], gate[0, 2], gate[0, 3]
    g10, g11, g12, g13 = gate[1, 0], gate[1, 1], gate[1, 2], gate[1, 3]
    g20, g21, g22, g23 = gate[2, 0], gate[2, 1], gate[2, 2], gate[2, 3]
    g30, g31, g32, g33 = gate[3, 0], gate[3, 1], gate[3, 2], gate[3, 3]
    for block in range(len(starts)):
        at = starts[block]
        x0, x1 = x[at : at + inner], x[at + inner : at + 2 * inner]
        x2, x3 = x[at + 2 * inner : at + 3 * inner], x[at + 3 * inner : at + 4 * inner]
        for j in range(inner):
            a0, a1, a2, a3 = x0[j], x1[j], x2[j], x3[j]
            x0[j] = g00 * a0 + g01 * a1 + g02 * a2 + g03 * a3
            x1[j] = g10 * a0 + g11 * a1 + g12 * a2 + g13 * a3
            x2[j] = g20 * a0 + g21 * a1 + g22 * a2 + g23 * a3
            x3[j] = g30 * a0 + g31 * a1 + g32 * a2 + g33 * a3


@compiled
def _rotate(x: Array, gate: Array, starts: Array, inner: int) -> None:
    """X <- gate x."""
    d = gate.shape[0]
    if d == 2:
        _rotate_2(x, gate, starts, inner)
    elif d == 4:
        _rotate_4(x, gate, starts, inner)
    else:
        for block in range(len(starts)):
            rows = x[starts[block] : starts[block] + d * inner]
            _copy(np.dot(gate, rows.reshape(d, inner)).reshape(-1), rows)


@compiled
def _rotate_and_correlate_2(x: Array, z: Array, gate: Array, starts: Array, inner: int, found: Array) -> None:
    g00, g01 = gate[0, 0], gate[0, 1]
    g10, g11 = gate[1, 0], gate[1, 1]
    zero = 0 * g00
    e00, e01, e10, e11 = zero, zero, zero, zero
    for block in range(len(starts)):
        at = starts[block]
        x0, x1 = x[at : at + inner], x[at + inner : at + 2 * inner]
        z0, z1 = z[at : at + inner], z[at + inner : at + 2 * inner]
        for j in range(inner):
            a0, a1, c0, c1 = x0[j], x1[j], z0[j], z1[j]
            b0 = g00 * a0 + g01 * a1
            b1 = g10 * a0 + g11 * a1
            x0[j], x1[j] = b0, b1
            e00 += b0 * c0
            e01 += b0 * c1
            e10 += b1 * c0
            e11 += b1 * c1
    found[0, 0], found[0, 1] = e00, e01
    found[1, 0], found[1, 1] = e10, e11


@compiled
def _rotate_and_correlate_4(x: Array, z: Array, gate: Array, starts: Array, inner: int, found: Array) -> None:
    g00, g01, g02, g03 = gate[0, 0], gate[0, 1], gate[0, 2], gate[0, 3]
    g10, g11, g12, g13 = gate[1, 0], gate[1, 1], gate[1, 2], gate[1, 3]
    g20, g21, g22, g23 = gate[2, 0], gate[2, 1], gate[2, 2], gate[2, 3]
    g30, g31, g32, g33 = gate[3, 0], gate[3, 1], gate[3, 2], gate[3, 3]
    zero = 0 * g00
    e00, e01, e02, e03, e10, e11, e12, e13 = zero, zero, zero, zero, zero, zero, zero, zero
    e20, e21, e22, e23, e30, e31, e32, e33 = zero, zero, zero, zero, zero, zero, zero, zero
    for block in range(len(starts)):
        at = starts[block]
        x0, x1 = x[at : at + inner], x[at + inner : at + 2 * inner]
        x2, x3 = x[at + 2 * inner : at + 3 * inner], x[at + 3 * inner : at + 4 * inner]
        z0, z1 = z[at : at + inner], z[at + inner : at + 2 * inner]
        z2, z3 = z[at + 2 * inner : at + 3 * inner], z[at + 3 * inner : at + 4 * inner]
        for j in range(inner):
            a0, a1, a2, a3 = x0[j], x1[j], x2[j], x3[j]
            b0 = g00 * a0 + g01 * a1 + g02 * a2 + g03 * a3
            b1 = g10 * a0 + g11 * a1 + g12 * a2 + g13 * a3
            b2 = g20 * a0 + g21 * a1 + g22 * a2 + g23 * a3
            b3 = g30 * a0 + g31 * a1 + g32 * a2 + g33 * a3
            x0[j], x1[j], x2[j], x3[j] = b0, b1, b2, b3
            c0, c1, c2, c3 = z0[j], z1[j], z2[j], z3[j]
            e00 += b0 * c0
            e01 += b0 * c1
            e02 += b0 * c2
            e03 += b0 * c3
            e10 += b1 * c0
            e11 += b1 * c1
            e12 += b1 * c2
            e13 += b1 * c3
            e20 += b2 * c0
            e21 += b2 * c1
            e22 += b2 * c2
            e23 += b2 * c3
            e30 += b3 * c0
            e31 += b3 * c1
            e32 += b3 * c2
            e33 += b3 * c3
    found[0, 0], found[0, 1], found[0, 2], found[0, 3] = e00, e01, e02, e03
    found[1, 0], found[1, 1], found[1, 2], found[1, 3] = e10, e11, e12, e13
    found[2, 0], found[2, 1], found[2, 2], found[2, 3] = e20, e21, e22, e23
    found[3, 0], found[3, 1], found[3, 2], found[3, 3] = e30, e31, e32, e33


@compiled
def _rotate_and_correlate(x: Array, z: Array, gate: Array, starts: Array, inner: int, found: Array) -> None:
    """X <- gate x, then found = x z^T over all but the wires of the gate; in one pass over memory for d <= 4."""
    d = gate.shape[0]
    if d == 2:
        _rotate_and_correlate_2(x, z, gate, starts, inner, found)
    elif d == 4:
        _rotate_and_correlate_4(x, z, gate, starts, inner, found)
    else:
        _rotate(x, gate, starts, inner)
        for i in range(d):
            for j in range(d):
                found[i, j] = 0
        for block in range(len(starts)):
            at = starts[block]
            rows, others = x[at : at + d * inner].reshape(d, inner), z[at : at + d * inner].reshape(d, inner)
            part = np.dot(rows, others.T)
            for i in range(d):
                for j in range(d):
                    found[i, j] += part[i, j]


@compiled
def _dot(a: Array, b: Array) -> Any:
    total = 0 * a[0]
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@compiled
def orthonormalize(rows: Array, lower: Array) -> None:
    """Make rows orthonormal in turn (Gram-Schmidt, each twice): rows before = lower @ rows after.

    A row that depends on those before it becomes some unit vector that does not; its column of ``lower`` is zero.

    Args:
        rows: shape (k, m), k <= m; overwritten.
        lower: shape (k, k); overwritten.
    """
    k, m = rows.shape
    for i in range(k):
        for j in range(k):
            lower[i, j] = 0
    for i in range(k):
        size = np.sqrt(_dot(rows[i], rows[i]))
        for attempt in range(m + 1):
            for _ in range(2):
                for j in range(i):
                    along = _dot(rows[j], rows[i])
                    for c in range(m):
                        rows[i, c] -= along * rows[j, c]
                    if attempt == 0:
                        lower[i, j] += along
            left = np.sqrt(_dot(rows[i], rows[i]))
            if (attempt == 0 and left > _TINY * size) or (attempt > 0 and left * left > 0.5 * (m - i) / m):
                for c in range(m):
                    rows[i, c] /= left
                if attempt == 0:
                    lower[i, i] = left
                break
            for c in range(m):
                rows[i, c] = 0
            rows[i, attempt] = 1  # some unit vector has at least the mean square length (m - i) / m left


@compiled
def _determinant(g: Array) -> Any:
    """Of a matrix of up to four rows, by elimination."""
    d = g.shape[0]
    left = g.copy()
    total = 1 + 0 * g[0, 0]
    for k in range(d):
        pivot = k
        for i in range(k + 1, d):
            if abs(left[i, k]) > abs(left[pivot, k]):
                pivot = i
        if pivot != k:
            total = -total
            for j in range(d):
                left[k, j], left[pivot, j] = left[pivot, j], left[k, j]
        total *= left[k, k]
        for i in range(k + 1, d):
            factor = left[i, k] / left[k, k]
            for j in range(k, d):
                left[i, j] -= factor * left[k, j]
    return total


@compiled
def _polar_2(e: Array, kind: int, gate: Array) -> None:
    """Of a 2 x 2 matrix in closed form: the larger of its rotation part and, in O(2), its reflection part."""
    c, s = e[0, 0] + e[1, 1], e[1, 0] - e[0, 1]
    size, sign = np.sqrt(c * c + s * s), 1
    if kind != ROTATION:
        a, b = e[0, 0] - e[1, 1], e[1, 0] + e[0, 1]
        other = np.sqrt(a * a + b * b)
        if other > size:
            c, s, size, sign = a, b, other, -1
    if size > 0:
        c, s = c / size, s / size
    else:
        c, s = 1 + 0 * c, 0 * s
    gate[0, 0], gate[1, 0] = c, s
    gate[0, 1], gate[1, 1] = -sign * s, sign * c


@compiled
def _newton_4(e: Array, kind: int, gate: Array) -> bool:
    """Of a 4 x 4 matrix by Newton's iteration x <- (x + x^-T) / 2, scaled by determinants; False where it does not do.

    It needs a determinant safely away from zero, and one that is positive for SO(4).
    """
    x00, x01, x02, x03 = e[0, 0], e[0, 1], e[0, 2], e[0, 3]
    x10, x11, x12, x13 = e[1, 0], e[1, 1], e[1, 2], e[1, 3]
    x20, x21, x22, x23 = e[2, 0], e[2, 1], e[2, 2], e[2, 3]
    x30, x31, x32, x33 = e[3, 0], e[3, 1], e[3, 2], e[3, 3]
    norm = 0 * x00
    for i in range(4):
        for j in range(4):
            norm += e[i, j] * e[i, j]
    eps = np.finfo(e.dtype).eps
    for step in range(20):
        # minors of the upper and of the lower two rows
        a01, a02, a03 = x00 * x11 - x01 * x10, x00 * x12 - x02 * x10, x00 * x13 - x03 * x10
        a12, a13, a23 = x01 * x12 - x02 * x11, x01 * x13 - x03 * x11, x02 * x13 - x03 * x12
        b01, b02, b03 = x20 * x31 - x21 * x30, x20 * x32 - x22 * x30, x20 * x33 - x23 * x30
        b12, b13, b23 = x21 * x32 - x22 * x31, x21 * x33 - x23 * x31, x22 * x33 - x23 * x32
        det = a01 * b23 - a02 * b13 + a03 * b12 + a12 * b03 - a13 * b02 + a23 * b01
        singular = abs(det) <= 10 * np.sqrt(eps) * norm * norm or not norm > 0
        if step == 0 and (singular or (kind == ROTATION and det < 0)):
            return False
        scale = abs(det) ** -0.25 if step < 3 else 1.0
        p, q = scale / 2, 1 / (2 * scale * det)
        y00 = p * x00 + q * (x11 * b23 - x12 * b13 + x13 * b12)
        y01 = p * x01 - q * (x10 * b23 - x12 * b03 + x13 * b02)
        y02 = p * x02 + q * (x10 * b13 - x11 * b03 + x13 * b01)
        y03 = p * x03 - q * (x10 * b12 - x11 * b02 + x12 * b01)
        y10 = p * x10 - q * (x01 * b23 - x02 * b13 + x03 * b12)
        y11 = p * x11 + q * (x00 * b23 - x02 * b03 + x03 * b02)
        y12 = p * x12 - q * (x00 * b13 - x01 * b03 + x03 * b01)
        y13 = p * x13 + q * (x00 * b12 - x01 * b02 + x02 * b01)
        y20 = p * x20 + q * (x31 * a23 - x32 * a13 + x33 * a12)
        y21 = p * x21 - q * (x30 * a23 - x32 * a03 + x33 * a02)
        y22 = p * x22 + q * (x30 * a13 - x31 * a03 + x33 * a01)
        y23 = p * x23 - q * (x30 * a12 - x31 * a02 + x32 * a01)
        y30 = p * x30 - q * (x21 * a23 - x22 * a13 + x23 * a12)
        y31 = p * x31 + q * (x20 * a23 - x22 * a03 + x23 * a02)
        y32 = p * x32 - q * (x20 * a13 - x21 * a03 + x23 * a01)
        y33 = p * x33 + q * (x20 * a12 - x21 * a02 + x22 * a01)
        change = (y00 - x00) ** 2 + (y01 - x01) ** 2 + (y02 - x02) ** 2 + (y03 - x03) ** 2
        change += (y10 - x10) ** 2 + (y11 - x11) ** 2 + (y12 - x12) ** 2 + (y13 - x13) ** 2
        change += (y20 - x20) ** 2 + (y21 - x21) ** 2 + (y22 - x22) ** 2 + (y23 - x23) ** 2
        change += (y30 - x30) ** 2 + (y31 - x31) ** 2 + (y32 - x32) ** 2 + (y33 - x33) ** 2
        x00, x01, x02, x03, x10, x11, x12, x13 = y00, y01, y02, y03, y10, y11, y12, y13
        x20, x21, x22, x23, x30, x31, x32, x33 = y20, y21, y22, y23, y30, y31, y32, y33
        if change < eps:  # of the square: the next error is of rounding
            break
    gate[0, 0], gate[0, 1], gate[0, 2], gate[0, 3] = x00, x01, x02, x03
    gate[1, 0], gate[1, 1], gate[1, 2], gate[1, 3] = x10, x11, x12, x13
    gate[2, 0], gate[2, 1], gate[2, 2], gate[2, 3] = x20, x21, x22, x23
    gate[3, 0], gate[3, 1], gate[3, 2], gate[3, 3] = x30, x31, x32, x33
    return True


@compiled
def polar(environment: Array, kind: int, gate: Array) -> None:
    """Gate <- the matrix of O(d), or of SO(d) if ``kind`` is ROTATION, with the largest <environment, gate>.

    Closed form for d = 2; Newton's iteration for d = 4 where it does; singular vectors by one-sided Jacobi rotations
    for the other small ones (a call of LAPACK takes longer than the rest of an update), by LAPACK above.
    """
    d = environment.shape[0]
    if d == 2:
        _polar_2(environment, kind, gate)
        return
    if d == 4 and _newton_4(environment, kind, gate):
        return
    if d > 4:
        left, _, right = np.linalg.svd(environment)
        if kind == ROTATION and np.linalg.det(left) * np.linalg.det(right) < 0:
            for i in range(d):
                left[i, d - 1] = -left[i, d - 1]
        _copy(np.dot(left, right).reshape(-1), gate.reshape(-1))
        return
    scaled = np.empty_like(environment)  # row q: column q of the environment, rotated until orthogonal to the others
    right = np.empty_like(environment)  # rows: right singular vectors
    for p in range(d):
        for q in range(d):
            scaled[q, p] = environment[p, q]
            right[p, q] = 1 if p == q else 0
    eps = np.finfo(environment.dtype).eps
    for _ in range(30):
        rotated = False
        for p in range(d - 1):
            for q in range(p + 1, d):
                alpha, beta, gamma = 0 * eps, 0 * eps, 0 * eps
                for i in range(d):
                    alpha += scaled[p, i] * scaled[p, i]
                    beta += scaled[q, i] * scaled[q, i]
                    gamma += scaled[p, i] * scaled[q, i]
                if abs(gamma) <= eps * np.sqrt(alpha * beta):
                    continue
                rotated = True
                zeta = (beta - alpha) / (2 * gamma)
                t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta * zeta))
                c = 1 / np.sqrt(1 + t * t)
                s = c * t
                for i in range(d):
                    a, b = scaled[p, i], scaled[q, i]
                    scaled[p, i], scaled[q, i] = c * a - s * b, s * a + c * b
                    a, b = right[p, i], right[q, i]
                    right[p, i], right[q, i] = c * a - s * b, s * a + c * b
        if not rotated:
            break
    for p in range(d - 1):  # the largest first: the last may be zero, and some unit vector takes its place
        for q in range(p + 1, d):
            if _dot(scaled[q], scaled[q]) > _dot(scaled[p], scaled[p]):
                for i in range(d):
                    scaled[p, i], scaled[q, i] = scaled[q, i], scaled[p, i]
                    right[p, i], right[q, i] = right[q, i], right[p, i]
    lower = np.empty_like(environment)
    orthonormalize(scaled, lower)
    for i in range(d):
        for j in range(d):
            total = 0 * eps
            for p in range(d):
                total += scaled[p, i] * right[p, j]
            gate[i, j] = total
    if kind == ROTATION and _determinant(gate) < 0:
        for i in range(d):
            for j in range(d):
                gate[i, j] -= 2 * scaled[d - 1, i] * right[d - 1, j]


@compiled
def _gate(flat: Array, side: Side, k: int) -> Array:
    d = side.dims[k]
    return flat[side.offsets[k] : side.offsets[k + 1]].reshape(d, d)


@compiled
def _blocks(side: Side, k: int) -> Array:
    return side.starts[side.firsts[k] : side.firsts[k + 1]]


@compiled
def run(x: Array, flat: Array, side: Side) -> None:
    """X <- g_m ... g_0 x."""
    for k in range(len(side.dims)):
        _rotate(x, _gate(flat, side, k), _blocks(side, k), side.inner[k])


@compiled
def run_back(x: Array, flat: Array, side: Side) -> None:
    """X <- (g_m ... g_0)^T x."""
    for k in range(len(side.dims) - 1, -1, -1):
        _rotate(x, _gate(flat, side, k).T.copy(), _blocks(side, k), side.inner[k])


@compiled
def sweep_side(bra: Array, ket: Array, flat: Array, side: Side) -> None:
    """Maximise <bra, g_m ... g_0 ket> gate by gate, from gate 0 to the last and back.

    Args:
        bra: the target with all gates taken off, (g_m ... g_0)^T target, shape (N V,); the same of the new gates at
            the end.
        ket: the start; unchanged at the end, but for rounding.
        flat: the gates; overwritten.
        side: their places.
    """
    gates = len(side.dims)
    for step in range(2 * gates):
        outwards = step < gates
        k = step if outwards else 2 * gates - 1 - step
        gate, blocks, inner = _gate(flat, side, k), _blocks(side, k), side.inner[k]
        turn = gate.copy() if outwards else gate.T.copy()
        ahead, behind = (bra, ket) if outwards else (ket, bra)
        if side.kinds[k] == FIXED:
            _rotate(ahead, turn, blocks, inner)
        else:
            environment = np.empty_like(turn)
            _rotate_and_correlate(ahead, behind, turn, blocks, inner, environment)
            polar(environment, side.kinds[k], turn)
            found = turn if outwards else turn.T.copy()
            _copy(found.reshape(-1), gate.reshape(-1))
        _rotate(behind, turn, blocks, inner)


@compiled
def gradient_side(bra: Array, ket: Array, flat: Array, side: Side, found: Array) -> None:
    """Found <- the antisymmetric parts of g^T E of all gates as they are.

    Args:
        bra: the target with all gates taken off; the target itself at the end.
        ket: the start; with all gates put on at the end.
        flat: the gates.
        side: their places.
        found: flat like the gates, zero where gates are fixed.
    """
    for k in range(len(side.dims)):
        gate, blocks, inner = _gate(flat, side, k), _blocks(side, k), side.inner[k]
        environment = np.empty_like(gate)
        _rotate_and_correlate(bra, ket, gate, blocks, inner, environment)
        _rotate(ket, gate, blocks, inner)
        if side.kinds[k] != FIXED:
            product, skew = np.dot(gate.T.copy(), environment), _gate(found, side, k)
            for i in range(len(gate)):
                for j in range(len(gate)):
                    skew[i, j] = (product[i, j] - product[j, i]) / 2


@compiled
def extrapolate(before: Array, after: Array, momentum: Array, side: Side, ahead: Array) -> None:
    """Ahead <- the gates nearest to after + momentum (after - before), for rows of gates."""
    for r in range(len(after)):
        for k in range(len(side.dims)):
            if side.kinds[k] != FIXED:
                old, new = _gate(before[r], side, k), _gate(after[r], side, k)
                moved = np.empty_like(new)
                for i in range(len(new)):
                    for j in range(len(new)):
                        moved[i, j] = new[i, j] + momentum[r] * (new[i, j] - old[i, j])
                polar(moved, side.kinds[k], _gate(ahead[r], side, k))


@compiled
def retract(gates: Array, direction: Array, step: float, side: Side) -> None:
    """Gates <- the gates nearest to g + step g A, for rows of gates and antisymmetric directions."""
    for r in range(len(gates)):
        for k in range(len(side.dims)):
            if side.kinds[k] != FIXED:
                gate = _gate(gates[r], side, k)
                ahead = np.dot(gate, _gate(direction[r], side, k))
                for i in range(len(gate)):
                    for j in range(len(gate)):
                        ahead[i, j] = gate[i, j] + step * ahead[i, j]
                polar(ahead, side.kinds[k], gate)


@compiled
def contract(core: Array, chain: Chain, dense: Array) -> None:
    """Dense <- the matrix of a chain of cores, flat."""
    total = np.ones((1, 1), core.dtype)
    for k in range(len(chain.legs)):
        left, leg, right = chain.bonds[k], chain.legs[k], chain.bonds[k + 1]
        site = core[chain.offsets[k] : chain.offsets[k + 1]].reshape(left, leg * right)
        total = np.dot(total, site).reshape(-1, right)
    entries = total.reshape(-1)
    for j in range(len(entries)):
        dense[chain.order[j]] = entries[j]


@compiled
def fit(matrix: Array, core: Array, chain: Chain, passes: int) -> Any:
    """Improve a chain towards a matrix by alternating least squares; returns its norm, and leaves it at norm 1.

    The same as :func:`unbraid.disentangling.fit.fit_chain`.
    """
    sites = len(chain.legs)
    target = matrix[chain.order]
    size = 0 * matrix[0]
    for _ in range(passes):
        rights = [target.reshape(-1, 1)]
        for k in range(sites - 1, 0, -1):
            left, leg, right = chain.bonds[k], chain.legs[k], chain.bonds[k + 1]
            rows = core[chain.offsets[k] : chain.offsets[k + 1]].reshape(left, leg * right)
            lower = np.empty((left, left), core.dtype)
            orthonormalize(rows, lower)
            before = core[chain.offsets[k - 1] : chain.offsets[k]]
            _copy(np.dot(before.reshape(-1, left), lower).reshape(-1), before)
            rights.append(np.dot(rights[-1].reshape(-1, leg * right), rows.T.copy()))
        isometry = np.ones((1, 1), core.dtype)
        for k in range(sites):
            left, leg, right = chain.bonds[k], chain.legs[k], chain.bonds[k + 1]
            best = np.dot(isometry, rights[sites - 1 - k].reshape(-1, leg * right))
            site = core[chain.offsets[k] : chain.offsets[k + 1]]
            if k == sites - 1:
                size = np.sqrt(_dot(best.reshape(-1), best.reshape(-1)))
                _copy(best.reshape(-1), site)
                for j in range(len(site)):
                    site[j] /= size
                break
            columns = best.reshape(left * leg, right).T.copy()
            lower = np.empty((right, right), core.dtype)
            orthonormalize(columns, lower)
            _copy(columns.T.copy().reshape(-1), site)
            # isometry: transposed, shape (bond, legs before)
            grown = np.dot(isometry.T.copy(), site.reshape(left, leg * right)).reshape(-1, right)
            isometry = grown.T.copy()
    return size


@compiled
def transpose(matrix: Array, rows: int, columns: int, into: Array) -> None:
    """Into <- the transpose of a flat matrix, tile by tile."""
    tile = 16
    for i0 in range(0, rows, tile):
        for j0 in range(0, columns, tile):
            for i in range(i0, min(i0 + tile, rows)):
                for j in range(j0, min(j0 + tile, columns)):
                    into[j * rows + i] = matrix[i * columns + j]


@compiled
def strip(
    target: Array,
    rows: int,
    columns: int,
    output: Array,
    output_side: Side,
    inward: Array,
    input_side: Side,
    work: Array,
    stripped: Array,
) -> None:
    """Stripped <- (O^T M I^T)^T, shape (columns, rows), the input gates given as they act on rows."""
    _copy(target, work)
    run_back(work, output, output_side)
    transpose(work, rows, columns, stripped)
    run_back(stripped, inward, input_side)


@compiled
def sweep(
    target: Array,
    rows: int,
    columns: int,
    output: Array,
    output_side: Side,
    inward: Array,
    input_side: Side,
    core: Array,
    chain: Chain,
    passes: int,
    overlap: Array,
) -> None:
    """One sweep of each of a batch of runs: input gates there and back, output gates there and back, then the core.

    Args:
        target: M, flat, shape (rows * columns,).
        rows: N_out.
        columns: N_in.
        output: gates of each run, flat, shape (runs, sizes); overwritten.
        output_side: their places.
        inward: gates of the input circuit, transposed (as they act on the rows of M^T); overwritten.
        input_side: their places.
        core: core of each run, flat, shape (runs, sizes), of norm 1; overwritten unless fixed.
        chain: its shapes.
        passes: over a joint core; 0 leaves it as it is.
        overlap: shape (runs,); overwritten.
    """
    work, bra, ket = np.empty_like(target), np.empty_like(target), np.empty_like(target)
    for r in range(len(output)):
        strip(target, rows, columns, output[r], output_side, inward[r], input_side, work, bra)
        contract(core[r], chain, work)
        transpose(work, rows, columns, ket)
        for half in range(2):  # one call in a loop: it is inlined, and compiles once
            flat, side = (inward[r], input_side) if half == 0 else (output[r], output_side)
            sweep_side(bra, ket, flat, side)
            if half == 0:
                transpose(bra, columns, rows, work)
                transpose(ket, columns, rows, bra)
                bra, ket, work = work, bra, ket
        overlap[r] = fit(bra, core[r], chain, passes) if passes > 0 else _dot(bra, ket)


@compiled
def gradient(
    target: Array,
    rows: int,
    columns: int,
    output: Array,
    output_side: Side,
    inward: Array,
    input_side: Side,
    core: Array,
    chain: Chain,
    passes: int,
    overlap: Array,
    output_gradient: Array,
    input_gradient: Array,
) -> None:
    """Overlap and Riemannian gradients of each of a batch of runs, after ``passes`` over its core.

    Args as of :func:`sweep`; the gradients are rows like the gates, zero at first.
    """
    work, bra, ket = np.empty_like(target), np.empty_like(target), np.empty_like(target)
    for r in range(len(output)):
        strip(target, rows, columns, output[r], output_side, inward[r], input_side, work, bra)
        transpose(bra, columns, rows, work)
        if passes > 0:
            overlap[r] = fit(work, core[r], chain, passes)
        contract(core[r], chain, ket)
        if passes == 0:
            overlap[r] = _dot(work, ket)
        transpose(ket, rows, columns, work)
        gradient_side(bra, work, inward[r], input_side, input_gradient[r])
        run_back(bra, inward[r], input_side)
        transpose(bra, columns, rows, work)
        gradient_side(work, ket, output[r], output_side, output_gradient[r])
