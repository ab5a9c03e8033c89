"""Whether circuits pay for one weight.

``judgement`` asks the question, ``layouts`` says which chains and circuits are tried, ``search`` finds the smallest of
each, ``outcome`` holds what was found, ``store`` what is kept meanwhile.
"""

from unbraid.disentangling.verdict.judgement import weight_verdict
from unbraid.disentangling.verdict.outcome import Candidate, Operator, Verdict
from unbraid.disentangling.verdict.search import Judge

__all__ = ["Candidate", "Judge", "Operator", "Verdict", "weight_verdict"]
