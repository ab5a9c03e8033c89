"""Members of a folder, a ``.zip`` or a ``.tar.gz``, read into memory one by one.

Nothing is ever extracted to disk, so a member's name cannot lead anywhere; limits on the number and the size of the
members keep a small hostile archive from filling the memory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from unbraid.ground.errors import FileFormatError

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz")
MAX_MEMBERS = 200_000
MAX_MEMBER_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 2**30

Wanted = Callable[[str], bool]

# Raised by the standard library on damaged archives, beside OSError; the last three escape its own checks.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    struct.error,
    IndexError,
    ValueError,
)


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that can be read."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_members(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """The wanted members of an archive, in its order.

    Args:
        path: a ``.zip``, ``.tar.gz`` or ``.tgz`` file.
        wanted: told a member's name (with slashes), says whether its content is needed.

    Yields:
        Names and contents.

    Raises:
        FileFormatError: if the archive is damaged, encrypted, of another kind, or beyond the limits.
    """
    read = _zip_members if path.name.lower().endswith(".zip") else _tar_members
    try:
        yield from read(path, wanted)
    except FileFormatError:
        raise
    except _DAMAGE as error:
        raise FileFormatError(
            f"{path} is no complete archive of the kind its name says ({error}). It may be truncated: get it again."
        ) from error
    except (RuntimeError, NotImplementedError) as error:  # what zipfile raises on encryption and rare compressions
        raise FileFormatError(f"{path} cannot be read ({error}). Repack it as a plain .zip or .tar.gz.") from error
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error


def folder_members(folder: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """The wanted files of ``folder`` itself and of ``train/*/`` and ``test/*/`` below it, as `archive_members`.

    Raises:
        FileFormatError: if a file cannot be read or is beyond the limits.
    """
    paths = [path for pattern in ("*", "train/*/*", "test/*/*") for path in sorted(folder.glob(pattern))]
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if wanted(name) and path.is_file():
            yield name, read_file(path)


def read_file(path: Path) -> bytes:
    """The content of a file of a size that data files have.

    Raises:
        FileFormatError: if it cannot be read or is larger than 64 MiB.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > MAX_MEMBER_BYTES:
        raise _too_large(f"{path}")
    return content


def gunzip(content: bytes, name: str) -> bytes:
    """``content`` uncompressed if it is gzip, else as it is: the name's suffix is not trusted.

    Raises:
        FileFormatError: if the gzip stream is damaged or truncated, or longer than 64 MiB.
    """
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        plain = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_MEMBER_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(
            f"{name} is no complete gzip file ({error}). It may be truncated: get it again."
        ) from error
    if len(plain) > MAX_MEMBER_BYTES:
        raise _too_large(f"{name}, uncompressed,")
    return plain


def _too_large(what: str) -> FileFormatError:
    return FileFormatError(f"{what} is larger than {MAX_MEMBER_BYTES // 2**20} MiB, which no data file here is.")


def _beyond_total(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{path} holds more than {MAX_MEMBERS:,} members or {MAX_TOTAL_BYTES // 2**20} MiB uncompressed, which no data "
        "set here does. Extract what you need from it and pass that folder."
    )


def _zip_members(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir() and wanted(info.filename)]
        if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > MAX_TOTAL_BYTES:
            raise _beyond_total(path)
        for info in infos:
            if info.file_size > MAX_MEMBER_BYTES:
                raise _too_large(f"{info.filename} in {path}")
            with archive.open(info) as stream:  # reads file_size bytes at most and checks their CRC
                yield info.filename, stream.read()


def _tar_members(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    with gzip.open(path) as plain:
        stream = cast(BinaryIO, _Limited(cast(BinaryIO, plain), path))
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise _beyond_total(path)
                if not member.isreg() or not wanted(member.name):
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise _too_large(f"{member.name} in {path}")
                content = archive.extractfile(member)
                if content is not None:
                    yield member.name, content.read()
        while stream.read(2**20):  # to the end, where gzip checks its sum
            pass


class _Limited:
    """A stream that goes forward only and refuses to give more than an honest data set holds.

    The limits stand below tarfile, which reads extended headers of any size on its own.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._position = 0

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_MEMBER_BYTES + 512:
            raise _too_large(f"A member of {self._path}")
        content = self._stream.read(size)
        self._position += len(content)
        if self._position > MAX_TOTAL_BYTES:
            raise _beyond_total(self._path)
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise tarfile.ReadError("its members are out of order")
        while self._position < position and self.read(min(position - self._position, 2**20)):
            pass
        return self._position
