"""Natural quantization: neurons are qubits, and measuring them is the activation (arXiv:2503.15482).

``laws`` says what a neuron does, ``neurons`` are the activations, ``network`` is a perceptron of them, ``score`` and
``exact`` are its gradient without bias and by enumeration, ``stack`` trains many at once.
"""

from unbraid.circuits.neuron_laws import angle, back_action, observed, polarization
from unbraid.circuits.neurons import RotationNeuron, WeakMeasurement
from unbraid.natural.exact import exact_loss, exact_probabilities, outcome_law
from unbraid.natural.network import BinaryLinear, NaturalMLP
from unbraid.natural.score import score_loss
from unbraid.natural.stack import NaturalStack, errors_together, train_together

__all__ = [
    "BinaryLinear",
    "NaturalMLP",
    "NaturalStack",
    "RotationNeuron",
    "WeakMeasurement",
    "angle",
    "back_action",
    "errors_together",
    "exact_loss",
    "exact_probabilities",
    "observed",
    "outcome_law",
    "polarization",
    "score_loss",
    "train_together",
]
