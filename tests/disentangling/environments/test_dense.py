"""The compiled loops against the torch engine, autograd and LAPACK; runs side by side against each alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Ansatz, Circuit, brickwall, parse_ansatz, scaffold
from unbraid.circuits.ansatz import Gate
from unbraid.circuits.gates import polar
from unbraid.disentangling.environments import DenseEngine, Unbatched, core_shapes, dense_engine, kernels, stack
from unbraid.disentangling.environments.dense import CompiledDenseEngine
from unbraid.disentangling.fit import fit_chain
from unbraid.tensors import MPO

SEEDS = st.integers(0, 10_000)
GEOMETRIES = {  # (output ansatz, input ansatz, output legs, input legs)
    "bricks": (brickwall(3, 2, gate="so"), brickwall(3, 2, gate="o", parity=1), (2, 2, 2), (2, 2, 2)),
    "scaffold": (scaffold(3, 2), parse_ansatz("1b+cz+2b", 3), (2, 2, 2), (2, 2, 2)),
    "three-body": (brickwall(4, 2, body=3), brickwall(4, 1, body=4), (2, 2, 2, 2), (2, 2, 2, 2)),
    "wide wires": (brickwall((4, 2, 3), 2), brickwall((2, 4, 2), 2), (4, 2, 3), (2, 4, 2)),
    "rectangular": (brickwall(2, 2), brickwall(4, 2), (2, 2, 1, 1), (2, 2, 2, 2)),
    "empty": (Ansatz((2, 2), ()), brickwall(2, 1), (2, 2), (2, 2)),
}


def engines(name, bond=2, *, fixed=False, seed=0, dtype=torch.float64):
    """The compiled and the torch engine for one problem, and a start."""
    output, inward, out_dims, in_dims = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(output.dimension, inward.dimension, dtype=torch.float64, generator=generator)
    target = (target / target.norm()).to(dtype)
    legs = [o * i for o, i in zip(out_dims, in_dims, strict=True)]
    shapes = core_shapes(legs, bond)
    compiled = dense_engine(target, output, inward, out_dims, in_dims, shapes, fixed_core=fixed)
    assert isinstance(compiled, CompiledDenseEngine)
    twin = Unbatched(DenseEngine(target, output, inward, out_dims, in_dims, fixed_core=fixed), shapes)
    gates = [
        [g.detach() for g in Circuit(side, "random", seed + k, mirrored=bool(k), dtype=torch.float64).gate_matrices()]
        for k, side in enumerate((output, inward))
    ]
    core = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return compiled, twin, gates, core if fixed else None


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_sweep_is_that_of_the_torch_engine(name, fixed):
    compiled, twin, gates, core = engines(name, fixed=fixed)
    mine, theirs = compiled.start(*gates, core), twin.start(*gates, core)
    for _ in range(3):
        torch.testing.assert_close(mine.overlap, theirs.overlap, rtol=0, atol=1e-10)
        for a, b in zip(vars(mine).values(), vars(theirs).values(), strict=True):
            assert a.shape == b.shape
        if name == "rectangular":  # a rank of 4 leaves environments of the larger circuit singular, their factors free
            break
        torch.testing.assert_close(mine.output, theirs.output, rtol=0, atol=1e-7)
        torch.testing.assert_close(mine.inward, theirs.inward, rtol=0, atol=1e-7)
        mine, theirs = compiled.sweep(mine), twin.sweep(theirs)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_are_those_of_the_torch_engine(name):
    compiled, twin, gates, core = engines(name, fixed=True)
    mine, theirs = compiled.gradient(compiled.start(*gates, core)), twin.gradient(twin.start(*gates, core))
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_gradient_is_the_derivative():
    compiled, _, gates, core = engines("bricks", fixed=True)
    state, output, inward = compiled.gradient(compiled.start(*gates, core))
    generator = torch.Generator().manual_seed(5)
    directions = []
    for layout, rows in ((compiled.output, output), (compiled.inward, inward)):
        skew = [x - x.mT for x in (torch.randn(d, d, dtype=torch.float64, generator=generator) for d in layout.dims)]
        directions.append(layout.join(skew, rows)[None])
    slope = sum(float((g * a).sum()) for g, a in zip((output, inward), directions, strict=True))
    step = 1e-5
    ahead, behind = (
        float(compiled.gradient(compiled.retract(state, *directions, t))[0].overlap) for t in (step, -step)
    )
    assert abs((ahead - behind) / (2 * step) - slope) < 1e-8


@settings(max_examples=5)
@given(seed=SEEDS, runs=st.integers(2, 5))
def test_runs_side_by_side_equal_each_alone(seed, runs):
    compiled, _, _, _ = engines("bricks")
    starts = [compiled.start(*engines("bricks", seed=seed + k)[2], None) for k in range(runs)]
    together = compiled.sweep(stack(starts))
    momentum = torch.linspace(0, 0.9, runs, dtype=torch.float64)
    ahead = compiled.extrapolate(stack(starts), together, momentum)
    for k, start in enumerate(starts):
        alone = compiled.sweep(start)
        for a, b in zip(vars(together.take([k])).values(), vars(alone).values(), strict=True):
            assert torch.equal(a, b)
        moved = compiled.extrapolate(start, alone, momentum[k : k + 1])
        assert torch.equal(moved.output[0], ahead.output[k])


def test_single_precision():
    compiled, _, gates, _ = engines("bricks", dtype=torch.float32)
    double, _, _, _ = engines("bricks")
    mine, theirs = compiled.start(*gates, None), double.start(*gates, None)
    for _ in range(5):
        mine, theirs = compiled.sweep(mine), double.sweep(theirs)
    assert mine.output.dtype == torch.float32
    torch.testing.assert_close(mine.overlap, theirs.overlap, rtol=0, atol=1e-5)


def test_torch_takes_what_the_compiled_loops_do_not():
    target = torch.eye(8, dtype=torch.float64) / 8**0.5
    shapes = core_shapes([4, 4, 4], 1)
    distant = Ansatz((2, 2, 2), ((Gate("so", (0, 2)),),))
    for ansatz in (brickwall(3, 1, gate="u"), distant):
        engine = dense_engine(target, ansatz, ansatz, (2, 2, 2), (2, 2, 2), shapes, fixed_core=False)
        assert isinstance(engine, Unbatched)
        assert "torch" in engine.plan


def spectra(d):
    """Singular values of all kinds: generic, tiny, equal, zero."""
    generic = np.linspace(1, 0.2, d)
    yield from (generic, generic ** np.arange(1, d + 1) * 1e-3, np.ones(d), np.zeros(d))
    for zeros in range(1, d):
        yield np.concatenate([generic[: d - zeros], np.zeros(zeros)])
        yield np.concatenate([generic[: d - zeros], np.full(zeros, 1e-11)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("d", [2, 3, 4, 8])
def test_polar_factors_are_optimal_and_orthogonal(d, dtype):
    rounding = 20 * np.finfo(dtype).eps
    random = np.random.default_rng(d)
    for values, scale, mirror in itertools.product(spectra(d), (1e-5, 1.0, 1e4), (1, -1)):
        left, right = (np.linalg.qr(random.standard_normal((d, d)))[0] for _ in range(2))
        left[:, 0] *= mirror
        environment = np.ascontiguousarray(scale * (left * values) @ right, dtype=dtype)
        for kind, group in ((kernels.ROTATION, "so"), (kernels.ORTHOGONAL, "o")):
            gate = np.empty((d, d), dtype)
            kernels.polar(environment, kind, gate)
            assert np.abs(gate @ gate.T - np.eye(d)).max() < rounding
            if kind == kernels.ROTATION:
                assert np.linalg.det(gate.astype(np.float64)) > 0
            best = polar(torch.from_numpy(environment).double(), group).numpy()
            exact = environment.astype(np.float64)
            assert (exact * gate).sum() >= (exact * best).sum() - rounding * np.linalg.norm(exact)


@settings(max_examples=20)
@given(seed=SEEDS, k=st.integers(1, 4), m=st.integers(4, 8), dependent=st.booleans())
def test_orthonormalized_rows_and_their_triangle(seed, k, m, dependent):
    rows = np.random.default_rng(seed).standard_normal((k, m))
    if dependent:
        rows[-1] = rows[0] if k > 1 else 0
    before, lower = rows.copy(), np.empty((k, k))
    kernels.orthonormalize(rows, lower)
    np.testing.assert_allclose(rows @ rows.T, np.eye(k), atol=1e-13)
    np.testing.assert_allclose(lower @ rows, before, atol=1e-12)
    assert not np.triu(lower, 1).any()


@settings(max_examples=10)
@given(seed=SEEDS, bond=st.integers(1, 4))
def test_the_core_is_fitted_as_by_torch(seed, bond):
    generator = torch.Generator().manual_seed(seed)
    legs, out_dims, in_dims = [4, 2, 6, 4], (2, 2, 3, 2), (2, 1, 2, 2)
    matrix = torch.randn(24, 8, dtype=torch.float64, generator=generator)
    shapes = core_shapes(legs, bond)
    cores = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    empty = [Ansatz(dims, ()) for dims in (out_dims, in_dims)]
    engine = dense_engine(matrix, *empty, out_dims, in_dims, shapes, fixed_core=False)
    state = engine.start([], [], cores)
    flat = MPO.from_dense(matrix, out_dims, in_dims)
    wide = torch.einsum("abcdefgh->aebfcgdh", matrix.reshape(*out_dims, *in_dims)).reshape(-1)
    _, size = fit_chain(wide, cores, 20)
    assert abs(float(state.overlap) - float(size)) < 1e-9
    assert abs(float(size)) <= float(flat.norm()) + 1e-9
