import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import Statevector
from sklearn.datasets import load_digits

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.quantum.encode import encode, prepare_state
from unbraid.quantum.multiplexed import multiplexed_cnots
from unbraid.quantum.staircase import reaches_all
from unbraid.tensors import MPS


def vectors(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "vectors"))


def test_vectors_are_normalised_padded_and_differ_by_the_norm():
    x = vectors(3, 2, 5)
    encoded = encode(x)
    assert encoded.vectors.shape == (3, 2, 8)
    assert encoded.norm.shape == encoded.fidelity.shape == (3, 2)
    assert encoded.num_qubits == 3
    torch.testing.assert_close(encoded.vectors.norm(dim=-1), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close((encoded.norm[..., None] * encoded.vectors)[..., :5], x)
    assert not encoded.vectors[..., 5:].any()
    assert bool((encoded.fidelity == 1).all())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_circuits_prepare_the_signed_vector_with_the_announced_cnots(n):
    x = vectors(2, 2**n, seed=n)
    encoded = encode(x)
    for i in range(2):
        circuit = encoded.circuit(i)
        np.testing.assert_allclose(Statevector(circuit).data, encoded.vectors[i].numpy(), atol=1e-12)
        assert set(circuit.count_ops()) <= {"ry", "cx"}
        assert circuit.count_ops().get("cx", 0) == encoded.cnot_count
    flipped = Statevector(encode(-x).circuit(0)).data
    np.testing.assert_allclose(flipped, -encoded.vectors[0].numpy(), atol=1e-12)


def test_cnots_of_amplitude_encoding():
    assert [multiplexed_cnots(n) for n in (6, 8, 10)] == [57, 247, 1013]


@settings(max_examples=30)
@given(st.lists(st.one_of(st.just(0.0), st.floats(-1e3, 1e3)), min_size=1, max_size=16))
def test_sparse_states_are_prepared_exactly(entries):
    encoded = encode(torch.tensor(entries, dtype=torch.float64))
    np.testing.assert_allclose(Statevector(encoded.circuit()).data, encoded.vectors.numpy(), atol=1e-10)


def test_gradients_agree_with_finite_differences_where_pixels_are_zero():
    x = vectors(3, 6)
    x[0, :3] = 0
    x[1, 1:] = 0
    x[1, 0] = -2.0

    def both(x):
        encoded = encode(x)
        return encoded.vectors, encoded.norm

    assert torch.autograd.gradcheck(both, x.requires_grad_(), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_zero_vector_and_extreme_ones_have_finite_gradients(dtype):
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max / 10
    x = torch.tensor([[0, 0, 0, 0], [tiny / 4, 0, 0, 0], [tiny, 0, tiny, 0], [huge, 0, -huge, 0]], dtype=dtype)
    x.requires_grad_()
    encoded = encode(x)
    (encoded.vectors.sum() + encoded.norm.sum()).backward()
    assert bool(torch.isfinite(x.grad).all())
    assert bool(torch.isfinite(encoded.vectors).all())
    assert encoded.vectors[0].tolist() == [1, 0, 0, 0]
    assert encoded.norm[:2].tolist() == [0, 0]
    torch.testing.assert_close(encoded.norm[3] / huge, torch.tensor(2**0.5, dtype=dtype))
    torch.testing.assert_close(encoded.norm[2] / tiny, torch.tensor(2**0.5, dtype=dtype))
    assert encoded.circuit(0).size() == 0
    assert not x.grad[0].any()


def test_one_vector_one_entry_and_integers():
    encoded = encode(torch.tensor([-3]))
    assert encoded.vectors.tolist() == [-1]
    assert float(encoded.norm) == 3
    assert encoded.circuit().num_qubits == 0
    np.testing.assert_allclose(Statevector(encoded.circuit()).data, [-1], atol=1e-15)
    assert encode(np.arange(5.0)).vectors.dtype == torch.float64
    assert encode([3, 4]).norm == 5
    assert encode(torch.zeros(0, 4)).norm.shape == (0,)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([[1.0, float("nan")]], "finite"),
        ([[1.0, float("inf")]], "finite"),
        (torch.ones(2, dtype=torch.complex64), "real"),
        (torch.tensor(1.0), "shape"),
        (torch.zeros(3, 0), "shape"),
        (torch.tensor([3e38, 3e38]), "float64"),
    ],
)
def test_vectors_that_are_no_states_are_refused(x, words):
    with pytest.raises(InvalidInputError, match=words):
        encode(x)


def test_unknown_encodings_and_vectors_are_refused():
    with pytest.raises(InvalidInputError, match="'amplitude'"):
        encode(torch.ones(4), encoding="angle")
    with pytest.raises(InvalidInputError, match="index 2"):
        encode(torch.ones(2, 4)).circuit(2)
    with pytest.raises(InvalidInputError, match="amplitudes"):
        prepare_state(torch.ones(3))
    with pytest.raises(InvalidInputError, match="zero vector"):
        prepare_state(torch.zeros(4))


def test_a_state_that_qiskit_refuses_is_prepared():
    # StatePreparation: "Input matrix is not unitary", or an error of 1e-10
    for entries in ([7.0, 1e-05, 0.0], [0.0, 0.0, 0.0, 0.0, 1e-6, 1.0, 3e-8, 0.0]):
        encoded = encode(torch.tensor(entries, dtype=torch.float64))
        np.testing.assert_allclose(Statevector(encoded.circuit()).data, encoded.vectors.numpy(), atol=1e-15)


@pytest.mark.parametrize(("n", "layers"), [(1, 1), (2, 3), (3, 1), (4, 1), (4, 2), (6, 3)])
def test_staircases_prepare_what_they_say_with_the_announced_cnots_on_a_line(n, layers):
    x = vectors(3, 2**n, seed=n)
    encoded = encode(x, "mps", layers=layers)
    torch.testing.assert_close(encoded.vectors.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    overlaps = (encoded.vectors * x / x.norm(dim=1, keepdim=True)).sum(dim=1)
    torch.testing.assert_close(encoded.fidelity, overlaps**2)
    assert bool((overlaps > 0).all())
    for i in range(3):
        circuit = encoded.circuit(i)
        np.testing.assert_allclose(Statevector(circuit).data, encoded.vectors[i].numpy(), atol=1e-12)
        assert set(circuit.count_ops()) <= {"ry", "cx"}
        assert circuit.count_ops().get("cx", 0) == encoded.cnot_count
        for item in circuit.data:
            qubits = [circuit.find_bit(qubit).index for qubit in item.qubits]
            assert max(qubits) - min(qubits) == len(qubits) - 1
    counts = encoded.gate_counts()
    assert [count["two_qubit"] for count in counts] == [encoded.cnot_count] * 3
    assert encoded.summary()["lowest_fidelity"] == pytest.approx(float(encoded.fidelity.min()))


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (3, 1), (4, 2)])
def test_enough_staircases_reach_every_state(n, layers):
    encoded = encode(vectors(5, 2**n, seed=2), "mps", layers=layers, sweeps=2000, tolerance=1e-15)
    assert float((1 - encoded.fidelity).max()) < 1e-10


def test_sweeps_only_improve_and_more_staircases_are_better():
    x = vectors(4, 64, seed=3)
    fidelities = [
        encode(x, "mps", layers=layers, sweeps=sweeps).fidelity
        for layers, sweeps in ((1, 0), (1, 50), (2, 50), (3, 50))
    ]
    assert all(bool((after > before).all()) for before, after in itertools.pairwise(fidelities))


@pytest.mark.parametrize("bond", [1, 2])
def test_one_staircase_prepares_a_state_of_bond_two_exactly(bond):
    state = MPS([vectors(1 if k == 0 else bond, 2, 1 if k == 5 else bond, seed=k) for k in range(6)]).to_dense()
    encoded = encode(torch.stack([state, -state]), "mps", layers=1, sweeps=0)
    np.testing.assert_allclose(encoded.fidelity, 1, atol=1e-12)
    torch.testing.assert_close(encoded.norm[:, None] * encoded.vectors, torch.stack([state, -state]))


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (3, 1), (4, 1), (4, 2)])
def test_gradients_through_staircases_agree_with_finite_differences(n, layers):
    x = vectors(2, 2**n, seed=5)
    x[0, 1] = 0
    direction = vectors(2, 2**n, seed=6)
    fine = {"layers": layers, "sweeps": 5000, "tolerance": 0.0}
    leaf = x.clone().requires_grad_()
    weight = vectors(2, 2**n, seed=7)
    (encode(leaf, "mps", **fine).vectors * weight).sum().backward()
    step = 1e-4
    ahead, behind = (encode(x + sign * step * direction, "mps", **fine).vectors for sign in (1, -1))
    difference = ((ahead - behind) * weight).sum() / (2 * step)
    assert float((leaf.grad * direction).sum()) == pytest.approx(float(difference), abs=2e-3)


@pytest.mark.parametrize(("layers", "step", "angle"), [(1, 1e-2, 0.98), (4, 0.05, 0.98)])
def test_gradients_through_staircases_agree_with_finite_differences_on_images(layers, step, angle):
    """Default sweeps, real images with many zero pixels; a direction between images for each."""
    images = torch.from_numpy(load_digits().data[:60])
    assert float((images == 0).double().mean()) > 0.4
    x = images / images.norm(dim=1, keepdim=True)
    direction = x.roll(1, 0) - x
    direction -= (direction * x).sum(1, keepdim=True) * x
    direction /= direction.norm(dim=1, keepdim=True)
    ahead, behind = (encode(x + sign * step * direction, "mps", layers=layers).vectors for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    # the derivative is symmetric, so a backward pass applies it to the direction
    leaf = x.clone().requires_grad_()
    (encode(leaf, "mps", layers=layers).vectors * direction).sum().backward()
    cosine = torch.cosine_similarity(leaf.grad, difference, dim=1)
    ratio = leaf.grad.norm(dim=1) / difference.norm(dim=1)
    assert bool(torch.isfinite(leaf.grad).all())
    assert float(cosine.median()) > angle
    assert float((cosine > 0.9).double().mean()) > 0.9
    assert float((ratio.log().abs() < 0.15).double().mean()) > 0.9


@pytest.mark.parametrize(("n", "layers"), [(3, 1), (4, 2), (5, 3), (6, 4), (7, 6)])
def test_enough_staircases_reach_every_vector(n, layers):
    assert reaches_all(n, layers) == (n > 3)  # three qubits have no state beyond bond 2
    encoded = encode(vectors(6, 2**n, seed=8), "mps", layers=layers, sweeps=2000, tolerance=0.0)
    assert bool((encoded.fidelity > 0.999999).all())
    if n > 3:
        assert not reaches_all(n, layers - 1)
        assert float(encode(vectors(6, 2**n, seed=8), "mps", layers=layers - 1).fidelity.min()) < 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_staircases_take_zeros_signs_and_odd_widths(dtype):
    x = torch.zeros(5, 6, dtype=dtype)
    x[1, 2] = -3
    x[2, :3] = 1
    x[3] = torch.tensor([1, 0, -1, 0, 2, 0])
    x[4, 5] = torch.finfo(dtype).tiny
    x.requires_grad_()
    encoded = encode(x, "mps", layers=1)
    assert encoded.vectors.shape == (5, 8)
    assert encoded.vectors.dtype == dtype
    assert bool((encoded.fidelity > 0.999).all())
    (encoded.vectors.sum() + encoded.norm.sum()).backward()
    assert bool(torch.isfinite(x.grad).all())
    assert encode(torch.zeros(0, 8), "mps").vectors.shape == (0, 8)
    assert encode(torch.ones(2, 1), "mps").vectors.shape == (2, 1)


def test_wrong_settings_of_encodings_are_refused():
    x = torch.ones(4)
    for wrong in ({"layers": 0}, {"layers": 1.5}, {"sweeps": -1}, {"tolerance": float("nan")}, {"layers": True}):
        with pytest.raises(InvalidInputError, match="must be"):
            encode(x, "mps", **wrong)
    with pytest.raises(InvalidInputError, match="belong to encoding='mps'"):
        encode(x, layers=2)
    with pytest.raises(InvalidInputError, match="no vectors"):
        encode(torch.zeros(0, 4)).summary()
