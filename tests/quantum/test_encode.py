import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import Statevector

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.random import stream
from unbraid.quantum.encode import amplitude_cnots, encode, prepare_state


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
        assert set(circuit.count_ops()) <= {"u", "cx"}
        assert circuit.count_ops().get("cx", 0) == encoded.cnot_count
    flipped = Statevector(encode(-x).circuit(0)).data
    np.testing.assert_allclose(flipped, -encoded.vectors[0].numpy(), atol=1e-12)


def test_cnots_of_amplitude_encoding():
    assert [amplitude_cnots(n) for n in (6, 8, 10)] == [57, 247, 1013]


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
