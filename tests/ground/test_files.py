import json
import math

import pytest
import torch

from unbraid.ground.errors import FileFormatError, InvalidInputError, OutputError
from unbraid.ground.files import (
    make_directory,
    problem_hash,
    read_checkpoint,
    read_json,
    read_tensors,
    write_checkpoint,
    write_json,
    write_tensors,
    write_text,
    written_beside,
)


def test_failed_write_keeps_the_old_content_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="boom"), written_beside(target) as temporary:  # noqa: PT012
        temporary.write_text("half of the new")
        raise RuntimeError("boom")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_failed_first_write_leaves_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    with pytest.raises(OutputError, match="disk full"), written_beside(tmp_path / "b"):
        raise OSError(28, "disk full")
    assert list(tmp_path.iterdir()) == []


def test_successful_write_replaces_and_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new é")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new é"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_place_below_a_regular_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="Cannot write"):
        make_directory(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="Cannot write"):
        make_directory(tmp_path / "file")
    with pytest.raises(OutputError, match="Cannot write"):
        write_text(tmp_path / "missing" / "a", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_make_directory_creates_parents_and_leaves_them_empty(tmp_path):
    made = make_directory(tmp_path / "a" / "b")
    assert made.is_dir()
    assert list(made.iterdir()) == []


def test_json_round_trip_and_errors(tmp_path):
    content = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    with pytest.raises(FileFormatError, match="Cannot read"):
        read_json(tmp_path / "none.json")
    for broken in (b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / "broken.json").write_bytes(broken)
        with pytest.raises(FileFormatError, match="no valid JSON"):
            read_json(tmp_path / "broken.json")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.complex128, torch.int64, torch.bool]
)
def test_tensors_round_trip_bit_for_bit(tmp_path, dtype):
    tensor = torch.randn(3, 4, dtype=torch.complex128) if dtype.is_complex else torch.randn(3, 4) * 3
    tensors = {"plain": tensor.to(dtype), "view": tensor.to(dtype).mT, "adjoint": tensor.to(dtype).mH}
    write_tensors(tmp_path / "t", tensors | {"scalar": torch.tensor(1.5)}, {"note": "hi"})
    found, metadata = read_tensors(tmp_path / "t")
    assert metadata == {"note": "hi"}
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == dtype for name in tensors)
    assert found["scalar"].shape == ()


def test_tensor_files_that_are_cut_foreign_or_missing_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.randn(100)})
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="no complete safetensors"):
            read_tensors(path)
    path.write_bytes(b"PK\x03\x04 this is a zip file, or so it says" * 10)
    with pytest.raises(FileFormatError, match="no complete safetensors"):
        read_tensors(path)
    with pytest.raises(FileFormatError, match="no such file"):
        read_tensors(tmp_path)


def nested_state():
    return {
        "numbers": [1, -2.5, 0.1, math.inf, -math.inf, True, None, "text"],
        "tuple": (1, (2.0, "x"), []),
        3: {"tensor": torch.randn(2, 3), "gates": [torch.randn(2, 2, dtype=torch.complex128) for _ in range(2)]},
        (1, "a"): {},
        "tensor": {"float": 1.0, "items": [], "list": ()},
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_checkpoint_round_trip_keeps_types_order_and_infinities(tmp_path):
    state = nested_state()
    write_checkpoint(tmp_path / "c", state, "problem")
    assert equal(read_checkpoint(tmp_path / "c", "problem"), state)


def test_checkpoint_keeps_not_a_number(tmp_path):
    write_checkpoint(tmp_path / "c", [math.nan], "p")
    assert math.isnan(read_checkpoint(tmp_path / "c", "p")[0])


def test_checkpoint_of_optimizer_state_round_trips(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, amsgrad=True)
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    write_checkpoint(tmp_path / "c", optimizer.state_dict(), "p")
    assert equal(read_checkpoint(tmp_path / "c", "p"), optimizer.state_dict())


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path, state = tmp_path / "c", nested_state()
    write_checkpoint(path, state, "mine")
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start < len(content)
    for place in range(start, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x3F]) + content[place + 1 :])
        with pytest.raises(FileFormatError, match="damaged"):
            read_checkpoint(path, "mine")
    path.write_bytes(content)
    assert equal(read_checkpoint(path, "mine"), state)


def test_checkpoint_of_another_problem_newer_version_or_cut_is_refused(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, nested_state(), "mine")
    with pytest.raises(InvalidInputError, match="another problem"):
        read_checkpoint(path, "yours")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(FileFormatError, match="truncated"):
        read_checkpoint(path, "mine")
    header = {"format": "unbraid-checkpoint", "version": 99, "problem": "mine", "tree": None}
    write_tensors(path, {"a": torch.zeros(1)}, {"checkpoint": json.dumps(header)})
    with pytest.raises(FileFormatError, match="Update unbraid"):
        read_checkpoint(path, "mine")
    write_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(FileFormatError, match="no unbraid checkpoint"):
        read_checkpoint(path, "mine")


def test_checkpoint_refuses_objects_and_keeps_the_old_one(tmp_path):
    write_checkpoint(tmp_path / "c", [1], "p")
    with pytest.raises(InvalidInputError, match="A checkpoint holds"):
        write_checkpoint(tmp_path / "c", [object()], "p")
    assert read_checkpoint(tmp_path / "c", "p") == [1]


def test_problem_hash_sees_values_but_not_the_order_of_keys():
    assert problem_hash({"a": 1, "b": [2.0]}) == problem_hash({"b": [2.0], "a": 1})
    assert problem_hash({"a": 1}) != problem_hash({"a": 2})
