import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Ansatz, Circuit, brickwall, parse_ansatz, scaffold
from unbraid.circuits.ansatz import Gate
from unbraid.circuits.program import apply_gate
from unbraid.disentangling.environments import DenseEngine, Gates
from unbraid.disentangling.environments.columns import Columns, kept_entries
from unbraid.disentangling.environments.mpo_engine import MPOEngine
from unbraid.disentangling.environments.network import place
from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO, chain
from unbraid.tensors.legs import deinterleave

TRUNCATED = {"memory_limit": 0}
WAYS = pytest.mark.parametrize("limits", [{}, TRUNCATED], ids=["exact", "truncated"])


def start_gates(ansatz, seed, init, *, mirrored):
    circuit = Circuit(ansatz, init, seed, mirrored=mirrored, dtype=torch.float64)
    return [gate.detach() for gate in circuit.gate_matrices()]


def product_core(mpo, bond, seed=0, dtype=torch.float64):
    core = MPO.random(mpo.out_dims, mpo.in_dims, bond, seed=seed, dtype=dtype)
    cores = [c.reshape(c.shape[0], -1, c.shape[3]) for c in core.cores]
    return chain.canonicalize(cores, len(cores) - 1)[0]


def problem(output, inward=None, *, bond=3, core_bond=1, init="random", seed=0, dtype=torch.float64):
    """An MPO and gates, with a core that belongs to nothing."""
    inward = output if inward is None else inward
    mpo = MPO.random(output.wire_dims, inward.wire_dims, bond, seed=seed, dtype=dtype)
    gates = Gates(
        start_gates(output, seed + 1, init, mirrored=False),
        start_gates(inward, seed + 2, init, mirrored=True),
        product_core(mpo, core_bond, seed, dtype),
        0.0,
    )
    return mpo, output, inward, gates


def dense_engine(mpo, output, inward, **options):
    matrix = mpo.to_padded_dense()
    return DenseEngine(matrix / matrix.norm(), output, inward, mpo.out_dims, mpo.in_dims, **options)


def with_derivatives(mpo, output, inward, gates):
    """Overlap and E of every gate, by autograd through dense matrices."""
    wide = torch.complex128
    sides = [[gate.to(wide, copy=True).requires_grad_() for gate in side] for side in (gates.output, gates.input)]
    x = deinterleave(chain.contract(gates.core), mpo.out_dims, mpo.in_dims).to(wide)
    for place_, gate in zip(output.gates(), sides[0], strict=True):
        x = apply_gate(x.mT, gate, place_.wires, output.wire_dims).mT
    for place_, gate in zip(inward.gates(), sides[1], strict=True):
        x = apply_gate(x, gate.mT, place_.wires, inward.wire_dims)
    matrix = mpo.to_padded_dense().to(wide)
    overlap = ((matrix / matrix.norm()).conj() * x).sum().real
    found = torch.autograd.grad(overlap, [*sides[0], *sides[1]])
    return float(overlap.detach()), found[: len(sides[0])], found[len(sides[0]) :]


SCATTERED = Ansatz(  # wires in any order, gates over each other, three bodies
    (2,) * 5,
    (
        (Gate("cnot", (1, 0)), Gate("so", (3, 2))),
        (Gate("so", (0, 2)), Gate("o", (1, 3))),
        (Gate("u", (2, 4, 3)),),
        (Gate("cz", (0, 3)), Gate("so", (1,))),
    ),
)
CIRCUITS = {
    "brickwall": (brickwall(6, 3),),
    "other parity": (brickwall(5, 2, parity=1), brickwall(5, 3)),
    "unitary": (brickwall(5, 2, gate="u"),),
    "scaffold": (scaffold(6, 3),),
    "mixed": (parse_ansatz("1b+cz+2b+h+swap+2b", 5),),
    "three bodies": (brickwall(6, 2, body=3),),
    "rectangular": (brickwall(6, 2), brickwall(3, 2)),
    "wide legs": (brickwall((4, 1, 2, 3), 2), brickwall((2, 4), 2)),
    "scattered": (SCATTERED,),
    "one site": (brickwall(1, 1, body=1),),
    "no gates": (brickwall(4, 0), brickwall(4, 1)),
}


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@WAYS
def test_overlap_and_environments_are_those_of_dense_matrices(name, dtype, limits):
    mpo, output, inward, gates = problem(*CIRCUITS[name], core_bond=2, dtype=dtype)
    expected, *sides = with_derivatives(mpo, output, inward, gates)
    engine = MPOEngine(mpo, output, inward, fixed_core=True, core_bond=2, truncation=1e-12, **limits)
    assert engine.exact == (limits == {})
    overlap, *found = engine.environments(gates)
    assert abs(overlap - expected) < 1e-10
    assert abs(engine.evaluate(gates).overlap - expected) < 1e-10
    for ansatz, ours, theirs in zip((output, inward), found, sides, strict=True):
        for gate, a, b in zip(ansatz.gates(), ours, theirs, strict=True):
            assert (a is None) == (not gate.is_trainable)
            if a is not None:
                assert a.shape == b.shape
                assert torch.allclose(a, b if a.is_complex() else b.real, atol=1e-10, rtol=0)
    assert engine.overlap_spread <= 2 * engine.truncation_error + 1e-12


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), n=st.sampled_from([8, 10]), depth=st.integers(1, 4), fixed=st.booleans())
def test_both_ways_agree_with_the_dense_engine(seed, n, depth, fixed):
    mpo, output, inward, gates = problem(brickwall(n, depth, parity=seed % 2), core_bond=2, seed=seed)
    expected = dense_engine(mpo, output, inward, fixed_core=fixed).evaluate(gates)
    for limits, tolerance in (({}, 1e-10), ({"memory_limit": 0, "max_bond": 300}, 1e-4)):
        engine = MPOEngine(mpo, output, inward, fixed_core=fixed, core_bond=2, **limits)
        found = engine.evaluate(gates)
        assert abs(found.overlap - expected.overlap) < tolerance
        if limits == {}:
            alike = float((chain.contract(found.core).conj() * chain.contract(expected.core)).sum())
            assert abs(alike - 1) < 1e-8


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    bond=st.integers(1, 3),
    fixed=st.booleans(),
    group=st.sampled_from(["so", "o", "u"]),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
)
def test_sweeps_never_lower_the_overlap(seed, bond, fixed, group, dtype):
    mpo, output, inward, gates = problem(brickwall(6, 2, gate=group), core_bond=bond, seed=seed, dtype=dtype)
    for limits in ({}, {"memory_limit": 0, "truncation": 1e-3}):
        engine = MPOEngine(mpo, output, inward, fixed_core=fixed, core_bond=bond, **limits)
        current = engine.evaluate(gates)
        for _ in range(3):
            swept = engine.sweep(current)
            assert swept.overlap >= current.overlap - 2 * engine.truncation_error - 1e-12
            current = swept
        real, *_ = with_derivatives(mpo, output, inward, current)
        assert abs(real - current.overlap) <= engine.truncation_error + 1e-12
        assert abs(float(torch.linalg.vector_norm(chain.contract(current.core))) - 1) < 1e-12
        for gate in (*current.output, *current.input):
            assert gate.is_complex() == (group == "u")
            assert torch.allclose(gate @ gate.mH, torch.eye(len(gate), dtype=gate.dtype), atol=1e-12)
            assert group != "so" or float(torch.linalg.det(gate)) > 0


def test_all_engines_reach_the_same_optimum():
    mpo, output, inward, gates = problem(brickwall(8, 2), bond=2, init="near_identity")
    dense = dense_engine(mpo, output, inward, fixed_core=False)
    gates = replace(gates, core=dense.truncated_core(gates, 1))
    engines = [
        dense,
        MPOEngine(mpo, output, inward, fixed_core=False),
        MPOEngine(mpo, output, inward, fixed_core=False, truncation=1e-4, **TRUNCATED),
    ]
    reached = []
    for engine in engines:
        current = engine.evaluate(gates)
        for _ in range(70):
            current = engine.sweep(current)
        reached.append(current.overlap)
    assert max(reached) - min(reached) < 1e-4


def realisable(n, depth):
    """Gates, a core of bond 2, and the MPO that they build, forty sites without a dense matrix."""
    ansatz = brickwall(n, depth)
    some, _, _, gates = problem(ansatz, core_bond=2, seed=5)
    engine = MPOEngine(some, ansatz, ansatz, fixed_core=True, truncation=0.0, max_bond=10_000)
    sweeps, matrices, built = engine._truncating(gates)
    for layer in (*engine.output_layers, *engine.input_layers):
        built = sweeps.put_on(built, layer, matrices)
    return MPO([core.reshape(core.shape[0], 2, 2, -1) for core in built.cores], log_scale=300.0), ansatz, gates


@WAYS
def test_forty_sites(limits):
    mpo, ansatz, gates = realisable(40, 2)
    engine = MPOEngine(mpo, ansatz, ansatz, fixed_core=False, core_bond=2, **limits)
    overlap, *sides = engine.environments(gates)
    assert abs(overlap - 1) < 1e-5
    for found, side in zip(sides, (gates.output, gates.input), strict=True):
        for E, gate in zip(found, side, strict=True):
            assert abs(float((E * gate).sum()) - 1) < 1e-5
    assert abs(engine.sweep(gates).overlap - 1) < 1e-5
    stripped, error = engine.disentangled(gates)
    assert max(stripped.bond_dims) <= 2
    assert error < 1e-5
    elsewhere = replace(gates, output=start_gates(ansatz, 8, "near_identity", mirrored=False))
    first = engine.evaluate(elsewhere)
    second = engine.sweep(first)
    assert second.overlap > first.overlap > 1e-12
    again = engine.sweep(first)
    assert again.overlap == second.overlap
    assert all(map(torch.equal, again.output, second.output))
    assert all(map(torch.equal, again.core, second.core))


def test_overlaps_too_small_for_a_float_still_have_environments():
    mpo, output, inward, gates = problem(brickwall(60, 2), seed=1)
    engine = MPOEngine(mpo, output, inward, fixed_core=True)
    small = engine.evaluate(gates)
    assert 0 < abs(small.overlap) < 1e-9
    assert engine.sweep(small).overlap > 1e6 * abs(small.overlap)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), truncation=st.sampled_from([1e-1, 1e-2, 1e-3]), cap=st.sampled_from([4, 1000]))
def test_truncation_errors_are_bounded(seed, truncation, cap):
    mpo, output, inward, gates = problem(brickwall(8, 3), bond=4, seed=seed)
    exact = MPOEngine(mpo, output, inward, fixed_core=True).evaluate(gates).overlap
    engine = MPOEngine(mpo, output, inward, fixed_core=True, truncation=truncation, max_bond=cap, **TRUNCATED)
    overlap, _, _ = engine.environments(gates)
    assert abs(overlap - exact) <= engine.truncation_error
    assert abs(engine.evaluate(gates).overlap - exact) <= engine.truncation_error
    assert engine.overlap_spread <= 2 * engine.truncation_error
    if cap == 1000:
        assert engine.truncation_error <= 6 * truncation  # six layers are taken off


@WAYS
@pytest.mark.parametrize("group", ["so", "u"])
def test_what_is_left_is_that_of_the_dense_engine(limits, group):
    mpo, output, inward, gates = problem(brickwall(6, 2, gate=group), brickwall(6, 1, gate=group, parity=1), bond=2)
    engine = MPOEngine(mpo, output, inward, fixed_core=False, **limits)
    dense = dense_engine(mpo, output, inward, fixed_core=False)
    stripped, error = engine.disentangled(gates)
    expected = dense.disentangled(gates)
    assert float((stripped.to_padded_dense() - expected).norm()) <= error + 1e-12
    assert error < 4e-6
    ours, theirs = engine.truncated_core(gates, 2), dense.truncated_core(gates, 2)
    assert [core.shape for core in ours] == [core.shape for core in theirs]
    assert abs(float((chain.contract(ours).conj() * chain.contract(theirs)).sum().real) - 1) < 1e-6


def test_boundaries_that_are_computed_again_change_nothing():
    mpo, output, inward, gates = problem(brickwall(9, 3), core_bond=2)
    engine = MPOEngine(mpo, output, inward, fixed_core=False, core_bond=2)
    assert engine.levels == 1
    once = engine.sweep(gates)
    sizes = engine._columns(gates).network.boundary_sizes
    kept = [kept_entries(sizes, levels) for levels in range(1, 6)]
    assert kept[0] == sum(sizes) + 3 * max(sizes)
    assert kept[0] > kept[1] > kept[2]
    for levels in range(2, 6):
        engine.levels = levels
        again = engine.sweep(gates)
        assert again.overlap == once.overlap
        assert all(map(torch.equal, again.output, once.output))


def test_boundaries_have_four_entries_a_gate_that_they_cut():
    mpo, output, inward, gates = problem(brickwall(12, 4), bond=3, core_bond=2)
    engine = MPOEngine(mpo, output, inward, fixed_core=True, core_bond=2)
    assert max(engine._columns(gates).network.boundary_sizes) == 3 * 2 * 4**4
    mpo, output, inward, gates = problem(scaffold(12, 4), bond=3)
    engine = MPOEngine(mpo, output, inward, fixed_core=True)
    assert max(engine._columns(gates).network.boundary_sizes) <= 8 * 3 * 2**4  # more within a column


def test_plans_say_what_and_why():
    mpo, output, inward, _ = problem(brickwall(12, 4), bond=4)
    engine = MPOEngine(mpo, output, inward, fixed_core=True)
    assert engine.plan.startswith("exact, column by column: the largest boundary takes ")
    assert engine.plan.endswith(" of 256 MiB allowed")
    engine = MPOEngine(mpo, output, inward, fixed_core=True, memory_limit=2**17)
    assert engine.exact
    assert engine.plan.endswith(" of 128 KiB allowed, each computed up to 2 times")
    engine = MPOEngine(mpo, output, inward, fixed_core=True, memory_limit=1000)
    assert not engine.exact
    assert engine.plan.startswith("truncated, layer by layer, to 1e-06 a layer and bonds of at most 128: the largest ")
    assert engine.plan.endswith("do not fit into 1000 B")
    deep = brickwall(12, 60)
    assert "2^" in MPOEngine(mpo, deep, deep, fixed_core=True).plan


def test_errors_teach():
    mpo, output, inward, _ = problem(brickwall(6, 1))
    with pytest.raises(
        InvalidInputError, match=r"wires of the input circuit must be the input legs.*\(2, 2, 2, 2, 2\)"
    ):
        MPOEngine(mpo, output, brickwall(5, 1), fixed_core=True)
    with pytest.raises(InvalidInputError, match=r"span up to 4 sites.*\(0, 1, 2, 3, 4\).*raise memory_limit"):
        MPOEngine(mpo, brickwall(6, 1, body=5), inward, fixed_core=True, memory_limit=0)
    with pytest.raises(InvalidInputError, match="leave it out"):
        place(Ansatz((2, 1), ((Gate("so", (1,)),),)), (2, 1), "output")
    with pytest.raises(InvalidInputError, match="truncation must be"):
        MPOEngine(mpo, output, inward, fixed_core=True, truncation=1.0)
    with pytest.raises(InvalidInputError, match="max_bond must be"):
        MPOEngine(mpo, output, inward, fixed_core=True, max_bond=0)
    with pytest.raises(InvalidInputError, match="This MPO is zero"):
        MPOEngine(mpo * 0.0, output, inward, fixed_core=True)


def test_float32_operators_are_optimised_in_float64():
    mpo, output, inward, gates = problem(brickwall(5, 1))
    engine = MPOEngine(mpo.to(torch.float32), output, inward, fixed_core=False)
    swept = engine.sweep(gates)
    assert {tensor.dtype for tensor in (*swept.output, *swept.core)} == {torch.float64}


def test_a_core_bond_larger_than_the_sites_allow_shrinks():
    core = [torch.ones(1, 4, 9), torch.ones(9, 4, 9), torch.ones(9, 4, 1)]
    core = [c.double() for c in core]
    mpo = MPO.random((2,) * 3, (2,) * 3, 4, dtype=torch.float64)
    target, _ = chain.canonicalize([c.reshape(c.shape[0], 4, -1) for c in mpo.cores], 0)
    columns = Columns.between((2,) * 3, (2,) * 3, target, core)
    assert math.isclose(columns.fit_core(5), 1, abs_tol=1e-12)
    assert [c.shape[2] for c in columns.core()] == [4, 4, 1]
