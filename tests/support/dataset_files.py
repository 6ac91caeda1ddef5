"""Writers of published data sets' own layouts: a few drawn images each."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from streams_data import write_picture


def write_cifar100_side(
    root: Path, side: str, images: np.ndarray, fine: list[int], coarse: list[int]
) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(exist_ok=True)
    table = {
        b"filenames": [b"%d.png" % index for index in range(len(fine))],
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": fine,
        b"coarse_labels": coarse,
        b"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1),
    }
    (folder / side).write_bytes(pickle.dumps(table, protocol=2))


def write_cifar100_meta(root: Path, fine: list[str], coarse: list[str]) -> None:
    names = {
        b"fine_label_names": [n.encode() for n in fine],
        b"coarse_label_names": [n.encode() for n in coarse],
    }
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps(names, protocol=2))


def write_core50(root: Path, objects: tuple[int, ...] = (1, 2, 10, 11), frames: int = 3) -> Path:
    """All eleven sessions; session 3 has a stray file and a stray folder."""
    for session in range(1, 12):
        for thing in objects:
            for frame in range(frames):
                name = f"C_{session:02d}_{thing:02d}_{frame:03d}.png"
                path = root / "core50_128x128" / f"s{session}" / f"o{thing}" / name
                write_picture(path, hash((session, thing, frame)) % 1000)
    (root / "core50_128x128" / "s3" / "README.txt").write_text("no image")
    write_picture(root / "core50_128x128" / "s3" / "o51" / "C_03_51_000.png")
    return root


def write_cub200(root: Path, images: list[tuple[str, int, bool, bytes]]) -> Path:
    """images: path inside images/, class from 1, whether it is for training, file content."""
    base = root / "CUB_200_2011"
    for path, _, _, content in images:
        (base / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (base / "images" / path).write_bytes(content)
    numbered = list(enumerate(images, 1))
    (base / "images.txt").write_text("".join(f"{n} {image[0]}\n" for n, image in numbered))
    (base / "image_class_labels.txt").write_text("".join(f"{n} {image[1]}\n" for n, image in numbered))
    (base / "train_test_split.txt").write_text("".join(f"{n} {int(image[2])}\n" for n, image in numbered))
    return root


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.SYMTYPE
                info.linkname = "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_mnist(root: Path, train: int = 12, test: int = 4) -> Path:
    """The four files of MNIST; digits take turns."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for side, count in (("train", train), ("t10k", test)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">4i", 2051, count, 28, 28)
        (raw / f"{side}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(number % 10 for number in range(count))
        (raw / f"{side}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)
    return root
