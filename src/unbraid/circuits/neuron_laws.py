"""What a neuron qubit does with its input: angles, and the probability of each outcome.

A neuron gets a real number ``z``. Its qubit is rotated by an angle that depends on ``z`` and on the quantumness ``a``,
and is measured; the outcome 1 is +1, the outcome 0 is -1. In place of the qubit an ancilla can be measured that was
coupled to it by an entangling angle ``g``. Without superposition (a = 0) and with full coupling (g = pi/2) the outcome
is the sign of ``z``, and that of 0 is +1.

Legend: ``m`` is the mean of the qubit's own outcomes, minus its <Z>.

Source:
    arXiv:2503.15482 names the two models, that angles depend on weights and earlier outcomes, that a limit is the
    classical network, and that g = pi/2 is it. Its formulas were not at hand: both laws of the angle and both gates of
    the ancilla are assumptions of this package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from unbraid.ground.errors import InvalidInputError, require_choice

Law = Literal["linear", "arcsine"]
Ancilla = Literal["symmetric", "asymmetric"]
LAWS = ("linear", "arcsine")
ANCILLAS = ("symmetric", "asymmetric")
FULL = math.pi / 2  # coupling of an ancilla that tells all
LEAST = 1e-6  # quantumness: inputs over less of it would leave the range of half precision
MOST_BITS = 6  # qubits of a neuron

Number = float | Tensor


def check_quantumness(a: float) -> float:
    """Refuse what is no quantumness.

    Raises:
        InvalidInputError: if it is negative, infinite or no number.
    """
    known = isinstance(a, Real) and not isinstance(a, bool)
    if not known or not (a == 0 or LEAST <= a < math.inf):
        raise InvalidInputError(
            f"The quantumness a must be a number, 0 (no superposition) or {LEAST:g} and more; got {a!r}. Try 0.5."
        )
    return float(a)


def check_coupling(g: float) -> float:
    """Refuse what is no entangling angle.

    Raises:
        InvalidInputError: if it is not above 0 and at most pi/2.
    """
    if isinstance(g, bool) or not isinstance(g, Real) or not 0 < g <= FULL:
        raise InvalidInputError(
            f"The entangling angle g must be above 0 and at most pi/2 = {FULL:.6g} (which is the classical limit); got "
            f"{g!r}."
        )
    return float(g)


def check_bits(bits: int) -> int:
    """Refuse what is no number of qubits of a neuron.

    Raises:
        InvalidInputError: if it is not between 1 and 6.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MOST_BITS:
        raise InvalidInputError(f"bits must be an integer from 1 to {MOST_BITS}: qubits a neuron; got {bits!r}.")
    return bits


def check_law(law: str) -> None:
    """Refuse an unknown law of the angle.

    Raises:
        InvalidInputError: naming those there are.
    """
    require_choice(law, LAWS, "law")


def _check(a: Number, law: str) -> None:
    check_law(law)
    if not isinstance(a, Tensor):
        check_quantumness(a)


def signs(z: Tensor) -> Tensor:
    """+1 or -1; of 0 it is +1, and of what is not finite NaN."""
    found = (z >= 0).to(z.dtype).mul_(2).sub_(1)  # several times faster than torch.where of two numbers
    return found.add_(z.detach(), alpha=0)


def _reduced(z: Tensor, a: Number) -> Tensor:
    """``z / a`` between -1 and 1; without superposition the sign, of which no number is divided."""
    if isinstance(a, Tensor):
        classical = a == 0
        inner = (z / torch.where(classical, torch.ones_like(a), a)).clamp(-1, 1)
        return torch.where(classical, signs(z), inner)
    return signs(z) if a == 0 else (z / a).clamp(-1, 1)


def polarization(z: Tensor, a: Number, law: Law = "linear") -> Tensor:
    """The mean ``m`` of the qubit's outcomes, differentiable where a > 0.

    Args:
        z: inputs, any shape.
        a: quantumness, or a tensor of several that broadcasts.
        law: "linear", m = sin(pi/2 clip(z/a, -1, 1)); or "arcsine", m = clip(z/a, -1, 1), which at a = 1 is the
            stochastic sign of Courbariaux et al., arXiv:1602.02830.

    Raises:
        InvalidInputError: if the quantumness is a number out of range, or the law unknown.
    """
    _check(a, law)
    inner = _reduced(z, a)
    return torch.sin(FULL * inner) if law == "linear" else inner


def angle(z: Tensor, a: Number, law: Law = "linear") -> Tensor:
    """The angle theta of RY, from 0 to pi: ``m = -cos(theta)``.

    Args:
        z: inputs, any shape.
        a: quantumness, or a tensor of several that broadcasts.
        law: "linear", theta = pi/2 (1 + clip(z/a, -1, 1)); or "arcsine", 2 arcsin sqrt((1 + clip(z/a, -1, 1)) / 2).

    Raises:
        InvalidInputError: as of :func:`polarization`.
    """
    _check(a, law)
    inner = _reduced(z, a)
    return FULL * (1 + inner) if law == "linear" else 2 * torch.asin(torch.sqrt((1 + inner) / 2))


def digit_weight(digit: int, bits: int) -> float:
    """What the outcome of one qubit of a register counts: halves from one to the next, 1 in all.

    Args:
        digit: 0 is the least significant.
        bits: qubits of the register.
    """
    return 2**digit / (2**bits - 1)


def digits(bits: int) -> range:
    """Of a register, the most significant first, in the order in which they are decided."""
    return range(bits - 1, -1, -1)


def register_law(z: Tensor, a: Number, bits: int, law: Law = "linear") -> tuple[Tensor, Tensor]:
    """All that a neuron of several qubits can put out, and how probable each is.

    Digits are decided one after another: a qubit gets what is left of ``z`` over its own weight
    (:func:`digit_weight`), and its outcome times the weight is taken off. Without superposition that is the nearest of
    2^bits levels from -1 to 1.

    Args:
        z: inputs, any shape.
        a: quantumness, or a tensor of several that broadcasts.
        bits: qubits, one or more.
        law: of each one's angle.

    Returns:
        Probabilities, shape (2^bits, ...), by the number whose digits are the outcomes; and levels, shape (2^bits,),
        from -1 up to 1.

    Source:
        An assumption of this package: arXiv:2503.15482 names values of more than two levels as future work.
    """
    *_, last = register_qubits(z, a, bits, law)
    found = _split(*last)
    return found, torch.linspace(-1, 1, 2**bits, dtype=z.dtype, device=z.device)


def register_qubits(z: Tensor, a: Number, bits: int, law: Law = "linear") -> Iterator[tuple[Tensor, Tensor]]:
    """The qubits of :func:`register_law`, the most significant first, after all outcomes of those before.

    Yields:
        Probabilities of what came before, and the mean of this qubit's outcome then, both of shape (2^k, ...) for the
        k-th.
    """
    chance, left = torch.ones_like(z)[None], z[None]
    for digit in digits(bits):
        weight = digit_weight(digit, bits)
        m = polarization(left / weight, a, law)
        yield chance, m
        chance = _split(chance, m)
        left = torch.stack([left + weight, left - weight], 1).flatten(0, 1)


def _split(chance: Tensor, m: Tensor) -> Tensor:
    """Probabilities with the outcome -1 and then +1 of a mean ``m`` as a further digit."""
    return torch.stack([chance * (1 - m) / 2, chance * (1 + m) / 2], 1).flatten(0, 1)


def observed(m: Tensor, g: Number | None, ancilla: Ancilla = "symmetric") -> Tensor:
    """The mean of what is measured.

    Args:
        m: mean of the qubit's own outcomes.
        g: entangling angle of the ancilla that is measured, or a tensor of several that broadcasts; None if the qubit
            itself is.
        ancilla: "symmetric", prepared by RY(pi/2 - g): m sin(g), a channel that flips with probability
            (1 - sin g) / 2. "asymmetric", not prepared: (1 + m) sin(g)^2 - 1, which takes +1 for -1, never the other
            way round.

    Raises:
        InvalidInputError: if the ancilla is unknown, or the angle a number out of range.
    """
    require_choice(ancilla, ANCILLAS, "ancilla")
    if g is None:
        return m
    if not isinstance(g, Tensor):
        check_coupling(g)
    sine = torch.sin(g) if isinstance(g, Tensor) else math.sin(g)
    return m * sine if ancilla == "symmetric" else (1 + m) * sine**2 - 1


def back_action(m: Tensor, x: Tensor, g: float, outcome: Tensor) -> tuple[Tensor, Tensor]:
    """The qubit's state once its symmetric ancilla was measured: what it is if it is used again without reset.

    Args:
        m: mean of the qubit's outcomes before, minus <Z>.
        x: <X> before.
        g: entangling angle.
        outcome: of the ancilla, +1 or -1.

    Returns:
        The same two afterwards: (m + s sin g) / (1 + s m sin g) and x cos g / (1 + s m sin g).

    Raises:
        InvalidInputError: if the angle is out of range.
    """
    check_coupling(g)
    chance = 1 + outcome * m * math.sin(g)  # twice that of the outcome
    return (m + outcome * math.sin(g)) / chance, x * math.cos(g) / chance
