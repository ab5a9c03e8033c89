"""``unbraid doctor`` knows what is there, what is not, and what is too old."""

from importlib import metadata

import pytest
from typer.testing import CliRunner

from unbraid.cli.app import app
from unbraid.cli.doctor import packages


def run():
    return CliRunner().invoke(app, ["doctor"])


def test_every_package_of_the_metadata_is_told():
    found = {(each.extra, each.name) for each in packages()}
    assert {("(core)", "torch"), ("(core)", "qiskit"), ("aer", "qiskit-aer"), ("distributed", "ray")} <= found
    assert {extra for extra, _ in found}.isdisjoint({"dev", "all"})
    result = run()
    assert result.exit_code == 0
    assert "torch computes on the CPU" in result.output
    assert all(name in result.output for _, name in found)


@pytest.mark.parametrize(
    ("name", "code", "command"), [("ray", 0, "unbraid[distributed]"), ("numba", 1, "--upgrade unbraid")]
)
@pytest.mark.parametrize("version", [None, "0.0.1"])
def test_what_is_missing_or_old_comes_with_a_command(monkeypatch, name, code, command, version):
    true = metadata.version

    def pretended(package):
        if package != name:
            return true(package)
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(metadata, "version", pretended)
    (found,) = (each for each in packages() if each.name == name)
    assert (found.found, found.state) == (version, "missing" if version is None else "too old")
    result = run()
    assert result.exit_code == code
    assert f"without {name}. To have it: pip install" in result.output
    assert command in result.output
