"""Finding a published data set in the layouts that users already have, and reading its pixels and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from unbraid.ground import progress
from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.recipes.catalogue import IDX_FILES, TEST_BATCH, TRAIN_BATCHES, Published
from unbraid.recipes.cifar import read_batches
from unbraid.recipes.containers import ARCHIVE_SUFFIXES, archive_members, folder_members, is_archive
from unbraid.recipes.idx import Part, read_idx_files
from unbraid.recipes.images import IMAGE_SUFFIXES, ImageTree

UNREAD_SUFFIXES = (".tar", ".tar.bz2", ".tar.xz", ".tar.zst", ".tbz2", ".txz", ".7z", ".rar")


@dataclass(frozen=True)
class Pixels:
    """What the files hold, before any split or scaling; each part is images (n, *shape) and labels (n,), uint8."""

    train: Part
    test: Part
    provenance: str


@dataclass(frozen=True)
class _Layout:
    description: str
    files: tuple[str, ...]
    read: Callable[[Mapping[str, bytes]], tuple[Part, Part]]


_DOWNLOAD = " (download=True; --download of the commands that have it)"
_IDX = (_Layout("idx files", IDX_FILES, read_idx_files),)
_BATCHES = tuple(
    _Layout(f"{version} batches", tuple(name + suffix for name in (*TRAIN_BATCHES, TEST_BATCH)), reader)
    for version, suffix, reader in (
        ("binary", ".bin", partial(read_batches, suffix=".bin")),
        ("Python", "", partial(read_batches, suffix="")),
    )
)


def find_source(published: Published, data_dir: Path) -> Path:
    """Find the folder or archive that holds a data set.

    Published files come before image trees, and folders before archives; a subfolder that has the data set's name comes
    before ``data_dir`` itself.

    Args:
        published: which one.
        data_dir: a folder that holds the files, a folder with a subfolder or archive of the data set's name, or an
            archive.

    Raises:
        InvalidInputError: if ``data_dir`` does not exist or cannot be read, or holds nothing that fits.
        FileFormatError: if it is a file, but no archive.
    """
    if data_dir.is_file():
        if not is_archive(data_dir):
            raise FileFormatError(
                f"{data_dir} is no archive that can be read ({', '.join(ARCHIVE_SUFFIXES)}). Repack it, or pass the "
                f"folder that holds {published.title}."
            )
        return data_dir
    if not data_dir.is_dir():
        raise InvalidInputError(
            f"data_dir must be a folder or archive that holds {published.title}; there is none at {data_dir}. Correct "
            f"the path, or have the files downloaded{_DOWNLOAD}."
        )
    try:
        return find_published(published, data_dir) or _find_other(published, data_dir)
    except OSError as error:
        raise InvalidInputError(f"Cannot read the folder {data_dir}: {error.strerror or error}.") from error


def find_published(published: Published, data_dir: Path) -> Path | None:
    """The folder in or below ``data_dir`` that holds all files as published, unpacked, if there is one."""
    if not data_dir.is_dir():
        return None
    return next((root for root in _roots(published.name, data_dir) if _is_complete(published, root)), None)


def _is_complete(published: Published, folder: Path) -> bool:
    present = {_canonical(path.name) for path in folder.iterdir()}
    return any(present.issuperset(layout.files) for layout in _layouts(published))


def _find_other(published: Published, data_dir: Path) -> Path:
    roots = list(_roots(published.name, data_dir))
    for root in roots:
        if (root / "train").is_dir() or (root / "test").is_dir():
            return root
    for root in roots:
        archives = sorted(path for path in root.iterdir() if path.is_file() and is_archive(path))
        downloaded = [path for path in archives if path.name in {file.file for file in published.downloads}]
        archives = downloaded or [path for path in archives if _is_named(path, published.name)] or archives
        if len(archives) > 1:
            listed = ", ".join(path.name for path in archives[:12])
            raise InvalidInputError(
                f"{root} holds several archives ({listed}). Pass the one with {published.title} as data_dir."
            )
        if archives:
            return archives[0]
    layouts = _layouts(published)
    known = {file for layout in layouts for file in layout.files}
    for root in roots:
        if known.intersection(_canonical(path.name) for path in root.iterdir()):
            return root  # an incomplete set: reading it says what is missing
    unread = [path.name for root in roots for path in sorted(root.iterdir()) if path.name.endswith(UNREAD_SUFFIXES)]
    also = f" {', '.join(unread[:3])} cannot be read: repack it as .tar.gz or .zip." if unread else ""
    raise InvalidInputError(
        f"No {published.title} in {', '.join(map(str, roots))}. Looked for {', '.join(published.files)}"
        f"{' (or the Python batches)' if len(layouts) > 1 else ' (also without .gz)'}, for folders train/CLASS/ and "
        f"test/CLASS/ of images, and for an archive ({', '.join(ARCHIVE_SUFFIXES)}) of these.{also} Correct data_dir, "
        f"or have the files downloaded{_DOWNLOAD}."
    )


def _roots(name: str, data_dir: Path) -> Iterator[Path]:
    """Folders that may hold the files, the most specific first (torchvision keeps them in ``MNIST/raw``)."""
    for child in sorted(path for path in data_dir.iterdir() if path.is_dir() and _is_named(path, name)):
        yield from sorted(path for path in child.iterdir() if path.is_dir() and _is_inside(path, name))
        yield child
    if (data_dir / "raw").is_dir():
        yield data_dir / "raw"
    yield data_dir


def _is_inside(path: Path, name: str) -> bool:
    return path.name == "raw" or _is_named(path, name)


def _is_named(path: Path, name: str) -> bool:
    """Whether a folder or archive is called like the data set: cifar10, cifar-10-batches-bin, but not cifar100."""
    squeezed = re.sub("[^a-z0-9]", "", path.name.lower())
    return re.match(rf"{name.replace('-', '')}(?!\d)", squeezed) is not None


def _layouts(published: Published) -> tuple[_Layout, ...]:
    return _IDX if len(published.shape) == 2 else _BATCHES


def _canonical(file: str) -> str:
    """The usual name of a data file: without ``.gz``, and with the dash that some copies write as a dot."""
    return re.sub(r"\.idx(\d)", r"-idx\1", file.removesuffix(".gz"))


def read_pixels(published: Published, source: Path) -> Pixels:
    """Read whichever layout a folder or an archive holds.

    Raises:
        FileFormatError: if it is incomplete or damaged, or holds another data set.
    """
    layouts = _layouts(published)
    known = {file for layout in layouts for file in layout.files}
    tree = ImageTree(published, str(source))
    files: dict[str, bytes] = {}
    files_suffice = source.is_dir() and _is_complete(published, source)

    def wanted(name: str) -> bool:
        return _canonical(PurePosixPath(name).name) in known or (not files_suffice and ImageTree.holds(name))

    members: Iterable[tuple[str, bytes]]
    members = folder_members(source, wanted) if source.is_dir() else archive_members(source, wanted)
    has_images = False
    for name, content in progress.track(members, f"reading {published.title}"):
        file = _canonical(PurePosixPath(name).name)
        if file not in known:
            tree.add(name, content)
            has_images = True
        elif file not in files or name.endswith(".gz"):
            files[file] = content

    for layout in layouts:
        missing = [file for file in layout.files if file not in files]
        if not missing:
            try:
                train, test = layout.read(files)
            except FileFormatError as error:
                raise FileFormatError(f"In {source}: {error}") from error
            return _checked(published, train, test, f"{published.title}, {layout.description} ({source.name})", source)
    if files:
        partial_layout = max(layouts, key=lambda layout: len(files.keys() & layout.files))
        missing = [file for file in partial_layout.files if file not in files]
        raise FileFormatError(
            f"{source} holds {', '.join(sorted(files))}, but not {', '.join(missing)}. {published.title} needs all of "
            f"{', '.join(partial_layout.files)}."
        )
    if not has_images and not source.is_dir():
        raise FileFormatError(
            f"{source} holds no {published.title}: looked for {', '.join(published.files)} and for images "
            f"({', '.join(IMAGE_SUFFIXES)}) in train/CLASS/ and test/CLASS/."
        )
    train, test = tree.part("train"), tree.part("test")
    images = "(JPEG copy), class folders of lossy images" if tree.lossy else "(PNG copy), class folders of images"
    return _checked(published, train, test, f"{published.title} {images} ({source.name})", source)


def _checked(published: Published, train: Part, test: Part, provenance: str, source: Path) -> Pixels:
    for split, (images, labels) in (("training", train), ("test", test)):
        problem = ""
        if len(images) != len(labels):
            problem = f"{len(images):,} {split} images and {len(labels):,} {split} labels; their numbers must be equal"
        elif not len(images):
            problem = f"no {split} images"
        elif images.shape[1:] != published.shape:
            problem = f"{split} images of shape {images.shape[1:]}; {published.title} has {published.shape}"
        elif labels.max() >= len(published.classes):
            problem = (
                f"the {split} label {labels.max()}, first at index {labels.argmax()}; {published.title} has labels 0 "
                f"to {len(published.classes) - 1}"
            )
        if problem:
            raise FileFormatError(f"{source} holds {problem}. The files may be damaged or of another data set.")
    return Pixels(train, test, provenance)
