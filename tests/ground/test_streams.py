import operator
from contextlib import contextmanager

import pytest
import torch

from unbraid.ground import progress
from unbraid.ground.errors import (
    InvalidInputError,
    MissingExtraError,
    UnbraidError,
    require_choice,
    require_extra,
    require_finite,
)
from unbraid.ground.manifest import build_manifest, hash_tensors
from unbraid.ground.parallel import fan_out
from unbraid.ground.random import isolated, stream, stream_seed


def drawn(seed, number):
    return float(torch.rand((), generator=stream(seed, "task", number)))


def test_streams_do_not_depend_on_order_and_differ_by_path_and_seed():
    forward = [drawn(0, k) for k in range(5)]
    backward = [drawn(0, k) for k in reversed(range(5))][::-1]
    assert forward == backward
    assert len({*forward, *(drawn(1, k) for k in range(5))}) == 10
    assert 0 <= stream_seed(-3, "a") < 2**63


@pytest.mark.parametrize("seed", [None, 1.5, "0", True])
def test_seed_must_be_an_integer(seed):
    with pytest.raises(InvalidInputError, match="seed must be an integer"):
        stream(seed, "x")


def test_streams_leave_the_global_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stream(0, "x")
    with isolated(3, "block"):
        inside = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with isolated(3, "block"):
        assert torch.equal(torch.rand(2), inside)


def test_isolated_restores_the_global_state_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), isolated(3, "block"):  # noqa: PT012
        torch.rand(2)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_fan_out_on_processes_equals_serial():
    tasks = [{"seed": 7, "path": k} for k in range(6)]
    serial = fan_out(_draw, tasks)
    assert serial == fan_out(_draw, tasks, workers=2)
    assert len(set(serial)) == 6


def _draw(seed, path):
    return torch.rand(3, generator=stream(seed, path)).tolist()[0]


def test_fan_out_of_nothing_and_bad_workers():
    assert fan_out(operator.add, []) == []
    for workers in (0, -2):
        with pytest.raises(InvalidInputError, match="workers must be"):
            fan_out(operator.add, [], workers=workers)


def test_progress_is_silent_by_default(capfd):
    with progress.task("work", 3) as advance:
        advance()
        advance(2, note="done")
    assert list(progress.track(range(3), "count")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_only_inside_the_block():
    seen = []

    class Display:
        @contextmanager
        def task(self, description, total):
            seen.append((description, total))
            yield lambda steps=1, note="": seen.append((steps, note))

    with progress.shown_by(Display()):
        assert list(progress.track("ab", "letters")) == ["a", "b"]
    list(progress.track("ab", "hidden"))
    assert seen == [("letters", 2), (1, ""), (1, "")]


def test_require_finite_counts_and_locates():
    tensor = torch.ones(2, 3)
    require_finite(tensor, "w")
    tensor[1, 2] = torch.inf
    with pytest.raises(InvalidInputError, match=r"w must be finite; it has 1 infinite.*out of 6.*\(1, 2\)"):
        require_finite(tensor, "w")
    tensor[0, 1] = torch.nan
    with pytest.raises(InvalidInputError, match=r"2 NaN.*\(0, 1\)"):
        require_finite(tensor, "w")
    with pytest.raises(ValueError, match="NaN"):
        require_finite(torch.tensor(complex(0, float("nan"))), "w")


def test_require_choice_lists_the_choices():
    assert require_choice("a", ("a", "b"), "letter") == "a"
    with pytest.raises(InvalidInputError, match=r"letter must be one of 'a', 'b'; got 'c'"):
        require_choice("c", ("a", "b"), "letter")
    with pytest.raises(InvalidInputError, match="got None"):
        require_choice(None, ("a", "b"), "letter")


def test_require_extra_names_its_command():
    assert require_extra("math", "x").pi > 3
    with pytest.raises(MissingExtraError, match=r"pip install 'unbraid\[aer\]'") as caught:
        require_extra("no_such_module_here.part", "aer")
    assert isinstance(caught.value, UnbraidError)
    assert isinstance(caught.value, ImportError)


def test_hash_sees_bytes_shape_and_dtype():
    x = torch.arange(6.0)
    assert hash_tensors(x) == hash_tensors(x.clone())
    assert hash_tensors(x.view(2, 3).mT) == hash_tensors(x.view(2, 3).mT.contiguous())
    different = [x, x.view(2, 3), x.double(), x + 1, x.bfloat16(), torch.complex(x, x).conj()]
    assert len({hash_tensors(y) for y in different}) == len(different)


def test_manifest_has_what_remakes_a_figure():
    manifest = build_manifest(seeds={"heal": 3}, data={"name": "digits"})
    assert manifest["seeds"] == {"heal": 3}
    assert manifest["data"] == {"name": "digits"}
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] or manifest["versions"]["torch"]
    assert {"commit", "command", "machine", "created"} <= set(manifest)
