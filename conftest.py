"""Runs the Python blocks of README.md and docs/ as tests. A block after ``<!--- skip: next -->`` is not run."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from xdist.scheduler import LoadScopeScheduling

_folder = "_temporary_directory"
_home = "_working_directory"


def _enter(namespace: dict[str, Any]) -> None:
    # The files that a document writes must not litter the repository, and its later blocks must find them.
    namespace[_home] = Path.cwd()
    namespace[_folder] = tempfile.TemporaryDirectory()
    os.chdir(namespace[_folder].name)


def _leave(namespace: dict[str, Any]) -> None:
    os.chdir(namespace[_home])
    namespace[_folder].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()


class _ByDocument(LoadScopeScheduling):
    """Shares out single tests, but keeps a document on one worker: its blocks build on each other.

    Likewise the tests that start clusters.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return file if file.endswith((".md", "test_parallel.py")) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByDocument:
    return _ByDocument(config, log)
