import subprocess
import sys

import pytest

import unbraid as ub


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, unbraid; print([m for m in sys.modules if m.partition('.')[0] in {names}])"
    names = {"qiskit", "qiskit_aer", "matplotlib", "quimb", "transformers", "sklearn", "scipy", "pydantic", "typer"}
    run = subprocess.run([sys.executable, "-c", code.format(names=names)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(ub.__all__) <= set(dir(ub))
    for name in ub.__all__:
        assert getattr(ub, name) is not None
    assert ub.nn.MPOLinear.__name__ == "MPOLinear"
    assert ub.__version__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="frobnicate"):
        _ = ub.frobnicate


def test_the_function_disentangle_survives_the_import_of_its_room():
    import unbraid.disentangling.search

    assert callable(ub.disentangle)
    assert unbraid.disentangling.search.disentangle is ub.disentangle
