"""Files that are either whole or not there: written beside, then renamed. No pickle, ever.

Tensors go to safetensors, everything else to JSON. A checkpoint is one safetensors file whose header carries a hash of
the problem it belongs to, so that a run never resumes from another run's state.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbraid.ground.errors import FileFormatError, InvalidInputError, OutputError
from unbraid.ground.manifest import hash_tensors

CHECKPOINT_FORMAT = "unbraid-checkpoint"
CHECKPOINT_VERSION = 2  # 1 had no hash of the content
COMPLEX_NOTE = "complex128"


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create ``path`` if needed and check, before any work is done, that it can be written to.

    Raises:
        OutputError: if it is a file, cannot be created, or cannot be written to.
    """
    directory = Path(path)
    if not os.fspath(path):
        raise OutputError("A folder for the output must have a name; got an empty one.")
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"Cannot write to the folder {directory}: it is a file. Choose another name.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {directory}: {error.strerror or error}. Choose a writable one."
        ) from error
    return directory


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    Raises:
        OutputError: if the folder cannot be written to or the disk is full.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with written_beside(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON; NaN and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileFormatError: if it is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is no valid JSON ({error}).") from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, whole or not at all."""
    from safetensors.torch import save

    content = {
        name: tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()
        for name, tensor in tensors.items()
    }
    header = dict(metadata or {})
    doubles = [name for name, tensor in content.items() if tensor.dtype == torch.complex128]
    if doubles:  # safetensors has no complex128: pairs of float64, and a note
        header[COMPLEX_NOTE] = json.dumps(doubles)
        content.update({name: torch.view_as_real(content[name]).clone() for name in doubles})
    write_bytes(path, save(content, metadata=header or None))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors (on the CPU) and its metadata.

    Raises:
        FileFormatError: if it is missing, truncated, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileFormatError(f"Cannot read {path}: there is no such file.")
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name in json.loads(metadata.pop(COMPLEX_NOTE, "[]")):
                tensors[name] = torch.view_as_complex(tensors[name])
            return tensors, metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(
            f"{path} is no complete safetensors file ({error}). It may be truncated, or a pickle of torch.save, which "
            "is never loaded: write it with safetensors.torch.save_file."
        ) from error


def problem_hash(problem: Any) -> str:
    """SHA-256 of a JSON-able description of a problem; names the problem in a checkpoint."""
    return hashlib.sha256(json.dumps(problem, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_checkpoint(path: str | os.PathLike[str], state: Any, problem: str) -> None:
    """Write nested state (dictionaries, lists, tensors, numbers, strings) as one file.

    Args:
        path: the checkpoint file.
        state: as ``optimizer.state_dict()`` returns it, for example.
        problem: :func:`problem_hash` of what the state belongs to.
    """
    tensors: dict[str, Tensor] = {}
    tree = _fold(state, tensors)
    content = _content_hash(tree, tensors)
    header = {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, "problem": problem, "content": content}
    header["tree"] = tree
    write_tensors(path, tensors or {"empty": torch.zeros(1)}, {"checkpoint": json.dumps(header)})


def read_checkpoint(path: str | os.PathLike[str], problem: str) -> Any:
    """Read what :func:`write_checkpoint` wrote.

    Raises:
        FileFormatError: if the file is truncated, damaged, foreign or from a newer version.
        InvalidInputError: if it belongs to another problem.
    """
    tensors, metadata = read_tensors(path)
    try:
        header = json.loads(metadata["checkpoint"])
        version, found, tree = int(header["version"]), header["problem"], header["tree"]
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is no unbraid checkpoint.") from error
    if version > CHECKPOINT_VERSION:
        raise FileFormatError(
            f"{path} has checkpoint version {version}; this unbraid reads up to {CHECKPOINT_VERSION}. Update unbraid."
        )
    if found != problem:
        raise InvalidInputError(
            f"{path} belongs to another problem (other data, model or settings). Use its own settings to resume it; to "
            "start anew, delete it or choose another place."
        )
    if version > 1 and header.get("content") != _content_hash(tree, tensors):
        raise FileFormatError(f"{path} is damaged: its content is not what was written. Delete it and start anew.")
    return _unfold(tree, tensors)


def _content_hash(tree: Any, tensors: Mapping[str, Tensor]) -> str:
    names = sorted(name for name in tensors if name != "empty")
    return problem_hash([tree, names, hash_tensors(*(tensors[name] for name in names))])


def _fold(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The JSON tree of a state; tensors move to ``tensors`` and leave a reference. Keys keep their type."""
    if isinstance(node, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, Mapping):
        return {"items": [[_fold(key, tensors), _fold(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {"tuple" if isinstance(node, tuple) else "list": [_fold(value, tensors) for value in node]}
    if node is None or isinstance(node, (bool, int, str)):
        return node
    if isinstance(node, float):
        return {"float": node.hex()}  # exact, and infinities survive
    raise InvalidInputError(f"A checkpoint holds numbers, strings, tensors, lists and dictionaries; got {type(node)}.")


def _unfold(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content].clone()  # where torch aligns memory, so that sums round as they did
    if kind == "items":
        return {_unfold(key, tensors): _unfold(value, tensors) for key, value in content}
    if kind == "float":
        return float.fromhex(content)
    values = [_unfold(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values
