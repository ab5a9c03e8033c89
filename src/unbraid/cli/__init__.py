"""The command ``unbraid``: thin verbs over typed functions."""

from unbraid.cli.app import main

__all__ = ["main"]
