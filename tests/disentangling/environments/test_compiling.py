import subprocess
import sys
from types import SimpleNamespace

import numba

from unbraid.disentangling.environments import compiling
from unbraid.disentangling.environments.compiling import compiled


def test_a_compiled_function_does_what_it_did():
    def add(a, b):
        return a + b

    assert compiled(add)(1.5, 2) == 3.5


def double(a):
    return 2 * a


def test_without_a_place_for_the_cache_it_still_compiles(monkeypatch):
    real = numba.njit

    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(compiling, "numba", SimpleNamespace(njit=refusing))  # numba itself goes on using the real one
    assert compiled(double)(2) == 4


def test_the_package_does_not_load_numba_until_it_is_needed():
    code = "import sys, unbraid, unbraid.disentangling; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
