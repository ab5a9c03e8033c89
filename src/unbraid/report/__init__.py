"""Reports: evaluating a network, and writing what was found as JSON, plots and one HTML page."""

from unbraid.report.document import Report
from unbraid.report.evaluate import evaluate

__all__ = ["Report", "evaluate"]
