"""Data sets: every layout gives the same pixels, every damage one clear error, and nothing reaches the network."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.ground.manifest import hash_tensors
from unbraid.recipes import containers
from unbraid.recipes.catalogue import PUBLISHED
from unbraid.recipes.datasets import Dataset, load_dataset, load_tensors_dataset
from unbraid.recipes.splits import stratified_split

TRAIN, TEST = 60, 20
CIFAR_CLASSES = PUBLISHED["cifar10"].classes
Bytes = NDArray[np.uint8]


def draw(count: int, shape: tuple[int, ...], seed: int) -> tuple[Bytes, Bytes]:
    """Images of noise; labels go round, so every class is there equally often."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 10


GREY_TRAIN, GREY_TEST = draw(TRAIN, (28, 28), 1), draw(TEST, (28, 28), 2)
COLOUR_TRAIN, COLOUR_TEST = draw(TRAIN, (32, 32, 3), 3), draw(TEST, (32, 32, 3), 4)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was asked for")

    monkeypatch.setattr(pooch, "retrieve", refuse)


def idx(array: Bytes, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_files() -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(GREY_TRAIN[0]),
        "train-labels-idx1-ubyte": idx(GREY_TRAIN[1]),
        "t10k-images-idx3-ubyte": idx(GREY_TEST[0]),
        "t10k-labels-idx1-ubyte": idx(GREY_TEST[1]),
    }


def batches() -> Iterator[tuple[str, Bytes, Bytes]]:
    """Names, rows of colour planes, labels."""
    planes = COLOUR_TRAIN[0].transpose(0, 3, 1, 2).reshape(TRAIN, -1)
    for number in range(5):
        part = slice(number * TRAIN // 5, (number + 1) * TRAIN // 5)
        yield f"data_batch_{number + 1}", planes[part], COLOUR_TRAIN[1][part]
    yield "test_batch", COLOUR_TEST[0].transpose(0, 3, 1, 2).reshape(TEST, -1), COLOUR_TEST[1]


def binary_files() -> dict[str, bytes]:
    return {f"{name}.bin": np.hstack([labels[:, None], rows]).tobytes() for name, rows, labels in batches()}


def python2_pickle(rows: Bytes, labels: Bytes) -> bytes:
    """A batch as Python 2 wrote the published ones: protocol 2, byte strings, old numpy names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\nq\x05" + text(b"u1") + b"K\x00K\x01\x87Rq\x06"
        b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    )
    raw = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86" + dtype + b"\x89"
        b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    listed = b"]q\x02(" + b"".join(number(int(label)) for label in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch") + text(b"labels") + listed + text(b"data") + array
    return b"\x80\x02}q\x01(" + entries + b"u."


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def encoded(image: Bytes, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def tree_files(kind: str = "PNG") -> dict[str, bytes]:
    suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
    return {
        f"{split}/{CIFAR_CLASSES[label]}/{number}.{suffix}": encoded(image, kind)
        for split, (images, labels) in (("train", COLOUR_TRAIN), ("test", COLOUR_TEST))
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    }


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def assert_parts(found: Dataset, train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes]) -> None:
    """The test part in its order; training and validation part together all training images, once."""
    x, y = found.test
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, torch.tensor(test[0].reshape(len(test[0]), -1)) / 255)
    assert y.tolist() == test[1].tolist()
    rows = torch.cat([found.train[0], found.validation[0]])
    labels = torch.cat([found.train[1], found.validation[1]]).tolist()
    expected = (torch.tensor(train[0].reshape(len(train[0]), -1)) / 255).tolist()
    together = sorted(zip(rows.tolist(), labels, strict=True))
    assert together == sorted(zip(expected, train[1].tolist(), strict=True))


class TestDigits:
    def test_sizes_and_range(self) -> None:
        digits = load_dataset("digits")
        assert digits.describe()["sizes"] == {"train": 1122, "validation": 225, "test": 450}
        for x, y in (digits.train, digits.validation, digits.test):
            assert x.shape == (len(y), 64)
            assert x.dtype == torch.float32
            assert y.dtype == torch.int64
            assert 0 <= float(x.min()) <= float(x.max()) == 1
            share = torch.bincount(y, minlength=10) / len(y)
            assert float((share - 0.1).abs().max()) < 0.01
        assert digits.classes == tuple("0123456789")

    def test_no_image_is_in_two_parts(self) -> None:
        digits = load_dataset("digits", seed=3)
        rows = torch.cat([digits.train[0], digits.validation[0], digits.test[0]])
        assert len(rows) == 1797
        assert len(torch.unique(rows, dim=0)) == 1797

    def test_seed_decides(self) -> None:
        torch.manual_seed(1)
        first = load_dataset("digits", seed=5)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert load_dataset("digits", seed=5).hash == first.hash
        assert torch.equal(torch.get_rng_state(), state)
        assert load_dataset("digits", seed=6).hash != first.hash

    def test_hash_names_the_tensors(self) -> None:
        digits = load_dataset("digits")
        assert digits.hash == hash_tensors(*digits.train, *digits.validation, *digits.test)

    def test_without_validation(self) -> None:
        digits = load_dataset("digits", validation_fraction=0)
        assert digits.describe()["sizes"] == {"train": 1347, "validation": 0, "test": 450}
        assert digits.validation[0].shape == (0, 64)


class TestArguments:
    def test_unknown_name_lists_the_choices(self) -> None:
        with pytest.raises(InvalidInputError, match="'digits', 'mnist', 'fashion-mnist', 'cifar10'"):
            load_dataset("imagenet")

    @pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), "half"])
    def test_bad_fraction(self, fraction: float) -> None:
        with pytest.raises(InvalidInputError, match="validation_fraction"):
            load_dataset("digits", validation_fraction=fraction)

    def test_fraction_that_leaves_nothing(self, tmp_path: Path) -> None:
        write_all(tmp_path, idx_files())
        with pytest.raises(InvalidInputError, match="leaves 60 for training and 0"):
            load_dataset("mnist", data_dir=tmp_path, validation_fraction=0.001)

    @pytest.mark.parametrize(("name", "size"), [("digits", 16), ("mnist", 7), ("mnist", 8.0), ("cifar10", 28)])
    def test_bad_size(self, name: str, size: int) -> None:
        with pytest.raises(InvalidInputError, match="size of"):
            load_dataset(name, size=size, data_dir=".")

    def test_seed_must_be_whole(self) -> None:
        with pytest.raises(InvalidInputError, match="seed"):
            load_dataset("digits", seed=0.5)  # type: ignore[arg-type]

    def test_files_or_a_download_are_needed(self) -> None:
        with pytest.raises(InvalidInputError, match=r"needs data_dir=.*download=True"):
            load_dataset("mnist")


class TestIdx:
    @pytest.mark.parametrize("folder", [".", "mnist", "MNIST", "MNIST/raw", "raw"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_layouts(self, tmp_path: Path, folder: str, zipped: bool) -> None:
        files = {f"{k}.gz": gzip.compress(v) for k, v in idx_files().items()} if zipped else idx_files()
        write_all(tmp_path / folder, files)
        mnist = load_dataset("mnist", data_dir=tmp_path)
        assert_parts(mnist, GREY_TRAIN, GREY_TEST)
        assert mnist.describe()["sizes"] == {"train": 54, "validation": 6, "test": 20}
        assert mnist.train[0].shape[1] == mnist.describe()["features"] == 784

    def test_names_with_a_dot(self, tmp_path: Path) -> None:
        write_all(tmp_path, {name.replace("-idx", ".idx"): content for name, content in idx_files().items()})
        assert_parts(load_dataset("mnist", data_dir=str(tmp_path)), GREY_TRAIN, GREY_TEST)

    def test_neighbours_are_told_apart(self, tmp_path: Path) -> None:
        write_all(tmp_path / "MNIST/raw", idx_files())
        with pytest.raises(InvalidInputError, match="No Fashion-MNIST"):
            load_dataset("fashion-mnist", data_dir=tmp_path)
        write_all(tmp_path / "FashionMNIST/raw", idx_files())
        fashion = load_dataset("fashion-mnist", data_dir=tmp_path)
        assert fashion.classes[9] == "Ankle boot"
        assert fashion.provenance.startswith("Fashion-MNIST, idx files")

    def test_seed_and_fraction_decide_the_validation_part_only(self, tmp_path: Path) -> None:
        write_all(tmp_path, idx_files())
        first, again, other = (
            load_dataset("mnist", data_dir=tmp_path, seed=seed, validation_fraction=1 / 3) for seed in (0, 0, 1)
        )
        assert first.hash == again.hash != other.hash
        assert torch.equal(first.test[0], other.test[0])
        assert torch.bincount(first.validation[1]).tolist() == [2] * 10

    @pytest.mark.parametrize("size", [8, 16, 28, 32])
    def test_size(self, tmp_path: Path, size: int) -> None:
        write_all(tmp_path, idx_files())
        mnist = load_dataset("mnist", data_dir=tmp_path, size=size)
        padded = np.pad(GREY_TEST[0] / 255, ((0, 0), (2, 2), (2, 2)))
        side = 32 // size
        expected = padded.reshape(TEST, size, side, size, side).mean((2, 4)) if size != 28 else GREY_TEST[0] / 255
        np.testing.assert_allclose(mnist.test[0], expected.reshape(TEST, -1), atol=1e-6)
        assert load_dataset("mnist", data_dir=tmp_path, size=size, validation_fraction=0).validation[0].shape == (
            0,
            size**2,
        )

    @pytest.mark.parametrize(
        ("name", "damage", "message"),
        [
            ("train-images-idx3-ubyte", lambda c: gzip.compress(c)[:-20], "no complete gzip file"),
            ("train-images-idx3-ubyte", lambda c: b"<html>" + c, "magic number 00000803 .* got 3c68746d"),
            ("train-images-idx3-ubyte", lambda c: b"", "an empty file"),
            ("train-images-idx3-ubyte", lambda c: c[:9], "ends within its header"),
            ("train-images-idx3-ubyte", lambda c: c[:-1], "announces .* holds 47,039"),
            ("t10k-labels-idx1-ubyte", lambda _: idx(GREY_TEST[1][:-1]), "20 test images and 19 test labels"),
            ("t10k-labels-idx1-ubyte", lambda _: idx(GREY_TEST[1] + 1), "test label 10, first at index 9"),
            ("t10k-labels-idx1-ubyte", lambda _: idx(GREY_TEST[1], kind=13), "magic number"),
            ("t10k-images-idx3-ubyte", lambda _: idx(GREY_TEST[0][:, 1:]), r"\(27, 28\); MNIST has \(28, 28\)"),
        ],
    )
    def test_damage(self, tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
        files = idx_files()
        write_all(tmp_path, files | {name: damage(files[name])})
        with pytest.raises(FileFormatError, match=message):
            load_dataset("mnist", data_dir=tmp_path)

    def test_gzip_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(containers, "MAX_MEMBER_BYTES", 10_000)
        write_all(tmp_path, {f"{name}.gz": gzip.compress(bytes(20_000)) for name in idx_files()})
        with pytest.raises(FileFormatError, match="larger than"):
            load_dataset("mnist", data_dir=tmp_path)

    def test_no_images(self, tmp_path: Path) -> None:
        empty = {"t10k-images-idx3-ubyte": idx(GREY_TEST[0][:0]), "t10k-labels-idx1-ubyte": idx(GREY_TEST[1][:0])}
        write_all(tmp_path, idx_files() | empty)
        with pytest.raises(FileFormatError, match="no test images"):
            load_dataset("mnist", data_dir=tmp_path)


class TestPlaces:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"there is none at .*nowhere"):
            load_dataset("mnist", data_dir=tmp_path / "nowhere")

    def test_empty_folder_says_what_was_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"train-images-idx3-ubyte\.gz.*train/CLASS/.*\.zip"):
            load_dataset("mnist", data_dir=tmp_path)

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        files = idx_files()
        del files["t10k-labels-idx1-ubyte"]
        write_all(tmp_path, files)
        with pytest.raises(FileFormatError, match="but not t10k-labels-idx1-ubyte"):
            load_dataset("mnist", data_dir=tmp_path)

    def test_unknown_archive(self, tmp_path: Path) -> None:
        (tmp_path / "cifar10.7z").write_bytes(b"7z")
        with pytest.raises(InvalidInputError, match=r"cifar10\.7z cannot be read"):
            load_dataset("cifar10", data_dir=tmp_path)
        with pytest.raises(FileFormatError, match="no archive that can be read"):
            load_dataset("cifar10", data_dir=tmp_path / "cifar10.7z")

    def test_several_archives(self, tmp_path: Path) -> None:
        write_zip(tmp_path / "a.zip", tree_files())
        write_zip(tmp_path / "b.zip", tree_files())
        with pytest.raises(InvalidInputError, match=r"several archives \(a\.zip, b\.zip\)"):
            load_dataset("cifar10", data_dir=tmp_path)
        assert_parts(load_dataset("cifar10", data_dir=tmp_path / "b.zip"), COLOUR_TRAIN, COLOUR_TEST)

    def test_cifar100_is_not_cifar10(self, tmp_path: Path) -> None:
        write_all(tmp_path / "cifar-100", binary_files())
        with pytest.raises(InvalidInputError, match="No CIFAR-10"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_unreadable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: Path) -> Iterator[Path]:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(InvalidInputError, match=r"Cannot read the folder .* Permission denied"):
            load_dataset("mnist", data_dir=tmp_path)


class TestCifarBatches:
    @pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "CIFAR10"])
    def test_binary(self, tmp_path: Path, folder: str) -> None:
        write_all(tmp_path / folder, binary_files() | {"batches.meta.txt": b"airplane\n", "readme.html": b""})
        cifar = load_dataset("cifar10", data_dir=tmp_path)
        assert_parts(cifar, COLOUR_TRAIN, COLOUR_TEST)
        assert cifar.train[0].shape == (54, 3072)
        assert "binary batches" in cifar.provenance

    def test_binary_archive_as_published(self, tmp_path: Path) -> None:
        files = {f"cifar-10-batches-bin/{name}": content for name, content in binary_files().items()}
        write_tar(tmp_path / "cifar-10-binary.tar.gz", files)
        write_tar(tmp_path / "cifar10_jpeg.tar.gz", tree_files("JPEG"))
        assert_parts(load_dataset("cifar10", data_dir=tmp_path), COLOUR_TRAIN, COLOUR_TEST)

    def test_python2_pickles_as_published(self, tmp_path: Path) -> None:
        files = {name: python2_pickle(rows, labels) for name, rows, labels in batches()}
        twin = pickle.loads(files["test_batch"], encoding="bytes")
        assert twin[b"labels"] == COLOUR_TEST[1].tolist()
        write_all(tmp_path / "cifar-10-batches-py", files)
        cifar = load_dataset("cifar10", data_dir=tmp_path)
        assert_parts(cifar, COLOUR_TRAIN, COLOUR_TEST)
        assert "Python batches" in cifar.provenance

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("keys", [str, str.encode])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_pickles_of_python3(self, tmp_path: Path, protocol: int, keys: Callable[[str], object], order: str) -> None:
        for name, rows, labels in batches():
            data = np.asfortranarray(rows) if order == "F" else rows
            batch = {keys("labels"): labels.tolist(), keys("data"): data, keys("filenames"): ["a.png"]}
            (tmp_path / name).write_bytes(pickle.dumps(batch, protocol))
        assert_parts(load_dataset("cifar10", data_dir=tmp_path), COLOUR_TRAIN, COLOUR_TEST)

    def test_pickle_is_never_executed(self, tmp_path: Path) -> None:
        marker = tmp_path / "executed"

        class Hostile:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (str(marker),)

        for protocol in (2, 4):
            for name, rows, labels in batches():
                batch = {"labels": labels.tolist(), "data": rows, "filenames": Hostile()}
                (tmp_path / name).write_bytes(pickle.dumps(batch, protocol))
            with pytest.raises(FileFormatError, match=r"refers to (posix|nt)\.mkdir.*nothing was executed"):
                load_dataset("cifar10", data_dir=tmp_path)
        assert not marker.exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80\x02",
            b"\x80\x02.",
            b"\x80\x02N.",
            b"no pickle at all",
            b"\x80\x02}q\x01(U\x04datau.",
            b"\x80\x02h\x07.",
            b"\x80\x02K\x01b.",
            b"cos\nsystem\n(S'true'\ntR.",
            pickle.dumps({"labels": [1], "data": np.zeros((1, 3071), np.uint8)}, 2),
            pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), np.float32)}, 2),
            pickle.dumps({"labels": [-1], "data": np.zeros((1, 3072), np.uint8)}, 2),
            pickle.dumps({"labels": "1", "data": np.zeros((1, 3072), np.uint8)}, 2),
            pickle.dumps({"labels": [1], "data": [0] * 3072}, 2),
            pickle.dumps({"labels": [1], 2: 3, "data": np.zeros((1, 3072), np.uint8)}, 2),
            pickle.dumps({"labels": [1]}, 2),
            pickle.dumps([1, 2], 2),
        ],
    )
    def test_damaged_pickles(self, tmp_path: Path, content: bytes) -> None:
        write_all(tmp_path, {name: content for name, _, _ in batches()})
        with pytest.raises(FileFormatError, match="data_batch_1"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_every_truncation_of_a_pickle_is_one_error(self, tmp_path: Path) -> None:
        name, rows, labels = next(batches())
        whole = python2_pickle(rows[:1], labels[:1])
        files = {other: whole for other, _, _ in batches()}
        for length in [*range(0, 220, 3), len(whole) - 3, len(whole) - 1]:
            write_all(tmp_path, files | {name: whole[:length]})
            with pytest.raises(FileFormatError, match="data_batch_1"):
                load_dataset("cifar10", data_dir=tmp_path)

    def test_truncated_batch(self, tmp_path: Path) -> None:
        files = binary_files()
        write_all(tmp_path, files | {"data_batch_3.bin": files["data_batch_3.bin"][:-1]})
        with pytest.raises(FileFormatError, match=r"data_batch_3\.bin must hold whole records of 3,073 bytes"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_label_out_of_range(self, tmp_path: Path) -> None:
        files = binary_files()
        write_all(tmp_path, files | {"test_batch.bin": b"\x0b" + files["test_batch.bin"][1:]})
        with pytest.raises(FileFormatError, match="test label 11, first at index 0"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_missing_batch(self, tmp_path: Path) -> None:
        files = binary_files()
        del files["data_batch_2.bin"]
        write_all(tmp_path, files)
        with pytest.raises(FileFormatError, match=r"but not data_batch_2\.bin"):
            load_dataset("cifar10", data_dir=tmp_path)


class TestImageTrees:
    @pytest.mark.parametrize("place", [".", "cifar10", "cifar10/cifar10_png", "cifar10.zip", "x/../images.tgz"])
    def test_containers(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "x").mkdir()
        files = tree_files() | {"train/cat/Thumbs.db": b"?", "train/cat/.hidden.png": b"?", "notes.txt": b"?"}
        files["__MACOSX/train/cat/7.png"] = b"?"
        if place.endswith("zip"):
            write_zip(tmp_path / place, {f"top/{name}": content for name, content in files.items()})
        elif place.endswith("tgz"):
            write_tar(tmp_path / place, {f"./top/{name}": content for name, content in files.items()})
        else:
            write_all(tmp_path / place, files)
        cifar = load_dataset("cifar10", data_dir=tmp_path)
        assert_parts(cifar, COLOUR_TRAIN, COLOUR_TEST)
        assert cifar.provenance.startswith("CIFAR-10 (PNG copy)")

    def test_jpeg_copies_say_so(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "cifar10_jpeg.tar.gz", tree_files("JPEG"))
        cifar = load_dataset("cifar10", data_dir=tmp_path)
        assert cifar.provenance.startswith("CIFAR-10 (JPEG copy)")
        assert "cifar10_jpeg.tar.gz" in cifar.provenance
        assert cifar.test[1].tolist() == COLOUR_TEST[1].tolist()

    def test_grey_images_in_numbered_folders(self, tmp_path: Path) -> None:
        for split, (images, labels) in (("train", GREY_TRAIN), ("test", GREY_TEST)):
            write_all(
                tmp_path / split,
                {
                    f"{label}/{n}.png": encoded(image)
                    for n, (image, label) in enumerate(zip(images, labels, strict=True))
                },
            )
        assert_parts(load_dataset("mnist", data_dir=tmp_path), GREY_TRAIN, GREY_TEST)

    @pytest.mark.parametrize("size", [8, 16, 32])
    def test_size_keeps_channels_last(self, tmp_path: Path, size: int) -> None:
        write_all(tmp_path, tree_files())
        side = 32 // size
        blocks = (COLOUR_TEST[0] / 255).reshape(TEST, size, side, size, side, 3).mean((2, 4))
        x = load_dataset("cifar10", data_dir=tmp_path, size=size).test[0]
        np.testing.assert_allclose(x, blocks.reshape(TEST, -1), atol=1e-6)

    def test_nothing_is_extracted(self, tmp_path: Path) -> None:
        files = {f"../../escaped/{name}": content for name, content in tree_files().items()}
        place = tmp_path / "a" / "b"
        place.mkdir(parents=True)
        write_zip(place / "cifar10.zip", files)
        assert_parts(load_dataset("cifar10", data_dir=place), COLOUR_TRAIN, COLOUR_TEST)
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "cifar10.zip"]

    def test_links_in_a_tar_are_ignored(self, tmp_path: Path) -> None:
        path = tmp_path / "cifar10.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            link = tarfile.TarInfo("train/cat/1.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        with pytest.raises(FileFormatError, match="holds no CIFAR-10"):
            load_dataset("cifar10", data_dir=path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "no complete JPEG or PNG"),
            (b"GIF89a\x01\x00\x01\x00", "no complete JPEG or PNG"),
            (encoded(COLOUR_TEST[0][0])[:200], "no complete JPEG or PNG"),
            (encoded(COLOUR_TEST[0][0])[:-30] + bytes(30), "no complete JPEG or PNG"),
            (encoded(COLOUR_TEST[0][0][:, :-1]), "must be 32x32 pixels; it is 31x32"),
        ],
    )
    def test_corrupt_image(self, tmp_path: Path, content: bytes, message: str) -> None:
        write_all(tmp_path, tree_files() | {"test/dog/77.png": content})
        with pytest.raises(FileFormatError, match=f"test/dog/77.png.*{message}"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_size_is_checked_before_decoding(self, tmp_path: Path) -> None:
        bomb = bytearray(encoded(COLOUR_TEST[0][0]))
        header = b"IHDR" + struct.pack(">II", 30_000, 5_000) + bytes(bomb[24:29])
        bomb[12:33] = header + struct.pack(">I", zlib.crc32(header))
        write_all(tmp_path, tree_files() | {"test/dog/77.png": bytes(bomb)})
        with pytest.warns(Image.DecompressionBombWarning), pytest.raises(FileFormatError, match="it is 30000x5000"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_empty_tree(self, tmp_path: Path) -> None:
        (tmp_path / "train" / "cat").mkdir(parents=True)
        with pytest.raises(FileFormatError, match=r"has no images .* below train/CLASS/.*airplane"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_missing_test_part(self, tmp_path: Path) -> None:
        write_all(tmp_path, {name: content for name, content in tree_files().items() if name.startswith("train")})
        with pytest.raises(FileFormatError, match="below test/CLASS/"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_missing_and_unknown_classes(self, tmp_path: Path) -> None:
        files = tree_files()
        partial = {name: content for name, content in files.items() if not name.startswith("train/frog")}
        write_zip(tmp_path / "partial.zip", partial)
        with pytest.raises(FileFormatError, match="no images in train/ of these classes: frog"):
            load_dataset("cifar10", data_dir=tmp_path / "partial.zip")
        write_zip(tmp_path / "more.zip", files | {"train/unicorn/1.png": encoded(COLOUR_TEST[0][0])})
        with pytest.raises(FileFormatError, match="no classes: unicorn"):
            load_dataset("cifar10", data_dir=tmp_path / "more.zip")


class TestArchiveDamage:
    @pytest.mark.parametrize("name", ["cifar10.zip", "cifar10.tar.gz"])
    @pytest.mark.parametrize("keep", [0, 10, 0.5, -12])
    def test_truncated(self, tmp_path: Path, name: str, keep: float) -> None:
        path = tmp_path / name
        (write_zip if name.endswith("zip") else write_tar)(path, tree_files())
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
        with pytest.raises(FileFormatError, match="no complete archive"):
            load_dataset("cifar10", data_dir=tmp_path)

    @pytest.mark.parametrize("name", ["cifar10.zip", "cifar10.tar.gz"])
    def test_flipped_bytes(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        (write_zip if name.endswith("zip") else write_tar)(path, tree_files())
        whole = bytearray(path.read_bytes())
        for position in range(len(whole) // 2, len(whole) // 2 + 40):
            whole[position] ^= 0x55
        path.write_bytes(whole)
        with pytest.raises(FileFormatError):
            load_dataset("cifar10", data_dir=tmp_path)

    @pytest.mark.parametrize("name", ["cifar10.zip", "cifar10.tar.gz"])
    @pytest.mark.parametrize(
        ("limit", "value"), [("MAX_MEMBERS", 79), ("MAX_MEMBER_BYTES", 2_000), ("MAX_TOTAL_BYTES", 50_000)]
    )
    def test_limits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: str, value: int) -> None:
        (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, tree_files())
        monkeypatch.setattr(containers, limit, value)
        with pytest.raises(FileFormatError, match=r"which no data (set|file) here"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_a_huge_extended_header_is_not_read(self, tmp_path: Path) -> None:
        member = tarfile.TarInfo("header")
        member.type, member.size = tarfile.XHDTYPE, 2**33 - 1
        (tmp_path / "cifar10.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)))
        with pytest.raises(FileFormatError, match="larger than 64 MiB"):
            load_dataset("cifar10", data_dir=tmp_path)

    def test_other_content(self, tmp_path: Path) -> None:
        write_zip(tmp_path / "cifar10.zip", {"readme.txt": b"hello"})
        with pytest.raises(FileFormatError, match=r"holds no CIFAR-10: looked for data_batch_1\.bin"):
            load_dataset("cifar10", data_dir=tmp_path)


class TestDownload:
    def test_files_are_fetched_with_their_hashes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
            asked.append((url, known_hash))
            (Path(path) / fname).write_bytes(gzip.compress(idx_files()[fname.removesuffix(".gz")]))
            return fname

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        mnist = load_dataset("mnist", data_dir=tmp_path, download=True)
        assert_parts(mnist, GREY_TRAIN, GREY_TEST)
        assert len(asked) == 4
        assert all(len(known.removeprefix("sha256:")) == 64 for _, known in asked)
        assert all(url.endswith(".gz") for url, _ in asked)
        asked.clear()
        assert load_dataset("mnist", data_dir=tmp_path, download=True).hash == mnist.hash
        assert not asked

    def test_cifar_and_the_cache_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def retrieve(url: str, known_hash: str, fname: str, path: Path) -> None:
            assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
            assert known_hash == "md5:c32a1d4ab5d03f1284b67883e8d87530"
            files = {f"cifar-10-batches-bin/{name}": content for name, content in binary_files().items()}
            write_tar(Path(path) / fname, files)

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
        assert_parts(load_dataset("cifar10", download=True), COLOUR_TRAIN, COLOUR_TEST)
        assert (tmp_path / "unbraid" / "cifar10" / "cifar-10-binary.tar.gz").is_file()

    def test_an_interrupted_download_is_completed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {f"{name}.gz": gzip.compress(content) for name, content in idx_files().items()}
        write_all(tmp_path / "mnist", dict(list(files.items())[:2]))

        def retrieve(_: str, known_hash: str, fname: str, path: Path) -> None:
            (path / fname).write_bytes(files[fname])

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        assert_parts(load_dataset("mnist", data_dir=tmp_path, download=True), GREY_TRAIN, GREY_TEST)

    @pytest.mark.parametrize(
        "error", [ConnectionError("no route\nto host"), ValueError("hash differs"), TimeoutError()]
    )
    def test_failure_is_one_error_with_every_address(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def retrieve(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        level = pooch.get_logger().level
        with pytest.raises(InvalidInputError, match=r"ossci-datasets.*cvdf-datasets.*put it into .*mnist") as caught:
            load_dataset("mnist", data_dir=tmp_path, download=True)
        assert "\n" not in str(caught.value)
        assert pooch.get_logger().level == level


class TestStratifiedSplit:
    def test_shares_and_partition(self) -> None:
        labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20 + [3])
        left, chosen = stratified_split(labels, 20, torch.Generator().manual_seed(0))
        assert sorted([*left.tolist(), *chosen.tolist()]) == list(range(101))
        assert torch.bincount(labels[chosen], minlength=4).tolist() == [10, 6, 4, 0]
        assert chosen.tolist() == sorted(chosen.tolist())

    @pytest.mark.parametrize("count", [0, 1, 7, 100, 101])
    def test_every_count(self, count: int) -> None:
        labels = torch.arange(101) % 7
        left, chosen = stratified_split(labels, count, torch.Generator().manual_seed(count))
        assert len(chosen) == count
        assert len(left) == 101 - count
        assert int(torch.bincount(labels[chosen], minlength=7).diff().abs().max()) <= 1

    @pytest.mark.parametrize("count", [-1, 102])
    def test_bad_count(self, count: int) -> None:
        with pytest.raises(InvalidInputError, match="between 0 and 101"):
            stratified_split(torch.arange(101), count, torch.Generator())


class TestTensors:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "data.safetensors"
        save_file({"x": torch.rand(5, 3, dtype=torch.float64), "y": torch.arange(5, dtype=torch.uint8)}, path)
        x, y = load_tensors_dataset(path)
        assert x.dtype == torch.float32
        assert x.shape == (5, 3)
        assert y.dtype == torch.int64
        assert y.tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"x": torch.zeros(2, 3), "y": torch.zeros(3, dtype=torch.int64)}, "got 2 and 3"),
            ({"x": torch.zeros(0, 3), "y": torch.zeros(0, dtype=torch.int64)}, "at least one"),
            ({"x": torch.zeros(2, 3, dtype=torch.uint8), "y": torch.zeros(2, dtype=torch.int64)}, "floating-point"),
            ({"x": torch.zeros(2), "y": torch.zeros(2, dtype=torch.int64)}, "shape"),
            ({"x": torch.zeros(2, 3), "y": torch.zeros(2)}, "whole numbers"),
            ({"x": torch.zeros(2, 3), "y": torch.zeros(2, 3, dtype=torch.int64)}, "whole numbers"),
            ({"x": torch.zeros(2, 3), "y": torch.tensor([0, -1])}, "-1 at index 1"),
            ({"x": torch.tensor([[0.0], [torch.nan]]), "y": torch.tensor([0, 1])}, "finite"),
        ],
    )
    def test_unusable(self, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
        path = tmp_path / "data.safetensors"
        save_file(tensors, path)
        with pytest.raises(InvalidInputError, match=message):
            load_tensors_dataset(path)

    def test_missing_tensor_and_file(self, tmp_path: Path) -> None:
        path = tmp_path / "data.safetensors"
        save_file({"x": torch.zeros(2, 3), "labels": torch.zeros(2)}, path)
        with pytest.raises(FileFormatError, match="lacks y and holds labels, x"):
            load_tensors_dataset(path)
        with pytest.raises(FileFormatError, match="no such file"):
            load_tensors_dataset(tmp_path / "absent.safetensors")
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(FileFormatError, match="no complete safetensors file"):
            load_tensors_dataset(path)


@pytest.mark.skipif("UNBRAID_DATA_DIR" not in os.environ, reason="UNBRAID_DATA_DIR names no folder with data sets")
class TestRealFiles:
    def test_mnist(self) -> None:
        mnist = load_dataset("mnist", data_dir=os.environ["UNBRAID_DATA_DIR"], size=16)
        assert mnist.describe()["sizes"] == {"train": 54_000, "validation": 6_000, "test": 10_000}
        assert mnist.test[1][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
