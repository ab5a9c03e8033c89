from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.circuits import Circuit, brickwall
from unbraid.disentangling import disentangle, disentangle_sum
from unbraid.ground.errors import InvalidInputError
from unbraid.tensors import MPO


def random_mpo(rows=8, columns=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return MPO.from_dense(torch.randn(rows, columns, dtype=wide, generator=generator).to(dtype))


def assert_sound(result, mpo, tolerance=1e-9):
    M = mpo.to_padded_dense().to(torch.complex128)
    W = sum(term.to_padded_dense() for term in result.terms).to(torch.complex128)
    overlap = float((M.conj() * W).sum().real / M.norm() / W.norm())
    assert abs(overlap - result.overlap) < tolerance
    assert abs(float((M - W).norm() / M.norm()) - result.rel_error) < tolerance**0.5
    assert all(after >= before for before, after in pairwise(result.history))
    assert result.history[-1] == result.overlap
    rows, columns = mpo.shape
    assert (result.to_dense() - W[:rows, :columns]).abs().max() < tolerance * float(M.norm())
    assert result.cnot_counts == tuple(sum(t.cnot_counts[k] for t in result.terms) for k in (0, 1))
    for term in result.terms:
        for circuit in (term.output_circuit, term.input_circuit):
            matrix = circuit.matrix().detach().to(torch.complex128)
            assert (matrix @ matrix.mH - torch.eye(len(matrix))).abs().max() < tolerance


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    terms=st.integers(2, 3),
    bond=st.integers(1, 2),
    gate=st.sampled_from(["so", "o", "u"]),
    columns=st.sampled_from([8, 5]),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
)
def test_every_sum_is_sound(seed, terms, bond, gate, columns, dtype):
    mpo = random_mpo(7, columns, seed, dtype)
    ansatz = brickwall(3, 1, gate=gate)
    assert_sound(disentangle_sum(mpo, ansatz, terms, core_bond=bond, seed=seed, max_sweeps=8), mpo)


def test_one_term_is_what_disentangle_finds():
    mpo, ansatz = random_mpo(), brickwall(3, 1, parity="auto")
    one, alone = disentangle_sum(mpo, ansatz, 1, restarts=2), disentangle(mpo, ansatz, restarts=2)
    assert one.history == alone.history
    assert (one.overlap, one.status, one.cnot_counts) == (alone.overlap, alone.status, alone.cnot_counts)
    assert torch.equal(one.to_dense(), alone.to_dense())


def test_more_terms_and_joint_rounds_gain():
    mpo, ansatz = random_mpo(16, 16), brickwall(4, 1)
    found = [disentangle_sum(mpo, ansatz, terms, max_sweeps=50) for terms in (1, 2, 3)]
    assert found[0].overlap < found[1].overlap < found[2].overlap
    assert found[1].overlap > found[1].history[1] + 1e-3
    assert abs(found[1].history[0] - found[0].overlap) < 1e-9


def test_a_sum_of_two_terms_is_found():
    ansatz = brickwall(3, 1)
    total = 0
    for k in range(2):
        left, right = (Circuit(ansatz, "random", 10 * k + s, mirrored=bool(s), dtype=torch.float64) for s in (0, 1))
        core = MPO.random((2,) * 3, (2,) * 3, 1, seed=k, dtype=torch.float64).to_dense()
        total = total + left.matrix() @ (core / core.norm()) @ right.matrix() * (1 - 0.3 * k)
    mpo = MPO.from_dense(total.detach())
    alone = disentangle(mpo, ansatz, restarts=4)
    both = disentangle_sum(mpo, ansatz, 2, restarts=4)
    assert both.overlap > max(0.98, alone.overlap + 0.02)


def test_rectangular_and_single_precision():
    mpo = random_mpo(4, 16, dtype=torch.float32)
    result = disentangle_sum(mpo, (brickwall(2, 1), brickwall(4, 1)), 2, max_sweeps=10)
    assert_sound(result, mpo, 1e-5)
    assert result.terms[0].core.dtype == torch.float32


def test_status_and_callback():
    mpo, ansatz, seen = random_mpo(), brickwall(3, 1), []
    options = {"max_sweeps": 40, "tolerance": 0.0}
    stopped = disentangle_sum(mpo, ansatz, 2, **options, callback=lambda n, o: seen.append((n, o)) or n < 5)
    assert stopped.status == "stopped"
    assert [n for n, _ in seen] == [1, 2, 3, 4, 5]
    assert tuple(o for _, o in seen) == stopped.history
    assert disentangle_sum(mpo, ansatz, 2, **options).status == "out_of_sweeps"
    assert disentangle_sum(mpo, ansatz, 2, tolerance=1e-3).status == "converged"


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_resumed_sum_equals_an_uninterrupted_one(tmp_path, dtype):
    mpo, ansatz = random_mpo(dtype=dtype), brickwall(3, 1, parity="auto")
    options = {"max_sweeps": 6, "tolerance": 0.0, "seed": 2}
    whole = disentangle_sum(mpo, ansatz, 2, **options)
    for stop in range(1, len(whole.history) + 1, 2):
        place = tmp_path / str(stop)
        disentangle_sum(mpo, ansatz, 2, **options, checkpoint=place, callback=lambda n, o, stop=stop: n < stop)
        resumed = disentangle_sum(mpo, ansatz, 2, **options, checkpoint=place)
        assert resumed.history == whole.history
        assert resumed.status == whole.status
        assert torch.equal(resumed.to_dense(), whole.to_dense())
    with pytest.raises(InvalidInputError, match="another problem"):
        disentangle_sum(mpo, ansatz, 3, **options, checkpoint=place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": 0}, "terms must be"),
        ({"terms": 1.5}, "terms must be"),
        ({"mpo": random_mpo() * 0.0}, "zero"),
        ({"mpo": torch.eye(8)}, "must be an MPO"),
        ({"ansatz": 3}, "pair"),
        ({"ansatz": brickwall(4, 1)}, "must act on 8"),
        ({"start": "warm"}, "start"),
        ({"core_bond": 9}, "wider"),
        ({"max_sweeps": 0}, "max_sweeps"),
        ({"mpo": MPO.random((2,) * 14, (2,) * 14, 2)}, "Use disentangle"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        disentangle_sum(**({"mpo": random_mpo(), "ansatz": brickwall(3, 1), "terms": 2} | options))
