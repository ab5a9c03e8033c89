"""CIFAR-10 batches as published: the binary version and the Python version (pickles).

No pickle is loaded. `pickletools.genops` only splits a pickle into opcodes; the small interpreter below turns those
into dictionaries, lists, numbers and byte strings. A reference to an importable name becomes an inert record, and any
name but the few that spell a numpy array is refused. Nothing is imported, called or constructed by the file.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbraid.ground.errors import FileFormatError
from unbraid.recipes.catalogue import TEST_BATCH, TRAIN_BATCHES
from unbraid.recipes.idx import Part

SIDE = 32
PIXELS = 3 * SIDE * SIDE
RECORD = 1 + PIXELS  # label, then the red, green and blue planes


def read_batches(files: Mapping[str, bytes], suffix: str) -> tuple[Part, Part]:
    """Training and test part from the six batches.

    Args:
        files: contents by name.
        suffix: ``".bin"`` for the binary version, ``""`` for the Python version.

    Returns:
        Images of shape (n, 32, 32, 3) and labels of shape (n,), twice.

    Raises:
        FileFormatError: if a batch is not what its name says.
    """
    read = read_binary_batch if suffix else read_python_batch
    batches = [read(files[batch + suffix], batch + suffix) for batch in TRAIN_BATCHES]
    train = np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])
    return train, read(files[TEST_BATCH + suffix], TEST_BATCH + suffix)


def read_binary_batch(content: bytes, name: str) -> Part:
    """One batch of the binary version: records of 3,073 bytes.

    Raises:
        FileFormatError: if the length is no positive multiple of a record.
    """
    if not content or len(content) % RECORD:
        raise FileFormatError(
            f"{name} must hold whole records of {RECORD:,} bytes (10,000 of them as published); got {len(content):,} "
            "bytes. It may be truncated: get it again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return _from_planes(records[:, 1:]), records[:, 0]


def read_python_batch(content: bytes, name: str) -> Part:
    """One batch of the Python version, without loading its pickle.

    Raises:
        FileFormatError: if it is no pickle of a dictionary with ``data`` and ``labels``, or refers to any other name.
    """
    try:
        batch = _PickleReader(name).read(content)
        by_name = {_text(key): value for key, value in batch.items()}
        data, labels = _byte_array(by_name["data"]), by_name["labels"]
        if data.ndim != 2 or data.shape[1] != PIXELS or not isinstance(labels, list):
            raise ValueError(f"data has shape {data.shape} and labels are a {type(labels).__name__}")
        if not all(type(label) is int and 0 <= label <= 255 for label in labels):
            raise ValueError("labels are no list of small whole numbers")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(
            f"{name} must be a pickled dictionary with data of shape (n, {PIXELS}), unsigned bytes, and a list of "
            f"labels; it is not ({type(error).__name__}: {error}). Get it again, or use the binary version."
        ) from error
    return _from_planes(data), np.array(labels, np.uint8)


def _from_planes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


_ARRAY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how Python 3 writes byte strings in the old protocols
}
_LITERALS = {
    "SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """A name that a pickle refers to; never looked up."""

    name: str


@dataclass(eq=False)
class _Call:
    """A call that a pickle asks for; never made."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class _PickleReader:
    def __init__(self, file: str) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode in _TUPLE_SIZES:
            stack.append(tuple(reversed([stack.pop() for _ in range(_TUPLE_SIZES[opcode])])))
        elif opcode == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif opcode in ("APPEND", "APPENDS"):
            values = [stack.pop()] if opcode == "APPEND" else self._pop_to_mark()
            self._top(list).extend(values)
        elif opcode in ("SETITEM", "SETITEMS"):
            pairs = [stack.pop(), stack.pop()][::-1] if opcode == "SETITEM" else self._pop_to_mark()
            self._top(dict).update((_text(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True))
        elif opcode == "GLOBAL":
            stack.append(self._name(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(self._name(module, name))
        elif opcode == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or not isinstance(arguments, tuple):
                raise ValueError("a call of something that has no name")
            is_bytes = function.name == "encode"
            stack.append(_text(arguments[0]).encode("latin-1") if is_bytes else _Call(function.name, arguments))
        elif opcode == "BUILD":
            state = stack.pop()
            self._top(_Call).state = state
        elif opcode not in ("PROTO", "FRAME"):
            raise ValueError(f"the opcode {opcode}")

    def _name(self, module: str, name: str) -> _Name:
        if (module, name) not in _ARRAY_NAMES:
            raise FileFormatError(
                f"{self._file} is a pickle that refers to {module}.{name}; only plain numpy arrays are read, and "
                "nothing was executed. Get the file from its publisher, or use the binary version."
            )
        return _Name(name)

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"a {kind.__name__.strip('_').lower()} was expected")
        return self._stack[-1]


def _text(value: Any) -> str:
    """Python 2's byte strings come as text from one protocol and as bytes from another."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise ValueError(f"a string was expected, not a {type(value).__name__}")
    return value


def _byte_array(call: _Call) -> NDArray[np.uint8]:
    """The array that a recorded call describes, if its entries are unsigned bytes."""
    if call.name == "_reconstruct":
        _, shape, dtype, fortran, raw = call.state
        order = "F" if fortran else "C"
    elif call.name == "_frombuffer":
        raw, dtype, shape, order = call.arguments
    else:
        raise ValueError(f"data is a {call.name}, not an array")
    if dtype.name != "dtype" or _text(dtype.arguments[0]) not in ("u1", "uint8"):
        raise ValueError(f"data has dtype {dtype.arguments[0]!r}, not unsigned bytes")
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("the array has no bytes or no shape")
    if math.prod(shape) != len(raw):
        raise ValueError(f"shape {shape} does not fit {len(raw):,} bytes")
    flat = np.frombuffer(bytes(raw), np.uint8)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)
