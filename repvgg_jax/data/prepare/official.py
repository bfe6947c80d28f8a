"""Reading the official archives of CIFAR, Imagenette and ImageNet-2012 as TFDS examples.

The examples have the features, ids, names and labels of TFDS's own builders, in the order of the
archives. CIFAR's images are stored as PNG, as by TFDS. JPEG files are stored unchanged, including
ImageNet's 22 CMYK images and its PNG file named .JPEG, which TFDS converts.
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.data.prepare.archives import Archive

TfdsExample = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """A split of a published data set.

    Attributes:
      read: function of (archive paths, number of examples to skip) that yields the other examples.
      size: number of examples, for the progress display.
    """

    read: Callable[[Sequence[Path], int], Iterator[TfdsExample]]
    size: int


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
      archives: published archives of the data set.
      splits: splits by name.
      names: text files in the first archive, by feature, for class names that TFDS lacks.
    """

    archives: tuple[Archive, ...]
    splits: Mapping[str, Split]
    names: Mapping[str, str] = field(default_factory=dict)


def class_names(archive: Path, member: str) -> list[str]:
    """Returns the lines of a text file in an archive."""
    with tarfile.open(archive) as tar:
        lines = tar.extractfile(member).read().decode().split("\n")
    return [line for line in lines if line]


def _cifar(
    paths: Sequence[Path], skip: int, *, folder: str, files: Sequence[str], labels: Sequence[str]
) -> Iterator[TfdsExample]:
    """Yields examples from rows of one byte per label and three planes of 32x32 pixels."""
    from PIL import Image

    prefix = "test" if files[0].startswith("test") else "train"
    index = 0
    with tarfile.open(paths[0]) as tar:
        for name in files:
            data = tar.extractfile(f"{folder}/{name}").read()
            for row in np.frombuffer(data, np.uint8).reshape(-1, len(labels) + 3072):
                if index >= skip:
                    pixels = row[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
                    image = io.BytesIO()
                    Image.fromarray(np.ascontiguousarray(pixels)).save(image, "PNG")
                    values = map(int, row[: len(labels)])
                    yield {
                        "id": f"{prefix}_{index:05d}",
                        "image": image.getvalue(),
                        **dict(zip(labels, values, strict=True)),
                    }
                index += 1


def _imagenette(paths: Sequence[Path], skip: int, *, folder: str) -> Iterator[TfdsExample]:
    """Yields an example for each image `<folder>/<wnid>/*.JPEG`."""
    wanted = re.compile(rf"(?:\./)?{re.escape(folder)}/(n\d+)/[^./][^/]*\.JPEG")
    with tarfile.open(paths[0], "r|*") as tar:
        members = ((wanted.fullmatch(member.name), member) for member in tar)
        members = ((match, member) for match, member in members if match)
        for index, (match, member) in enumerate(members):
            if index >= skip:
                yield {"image": tar.extractfile(member).read(), "label": match[1]}


def _imagenet_train(paths: Sequence[Path], skip: int) -> Iterator[TfdsExample]:
    """Yields examples from an archive that contains an archive `<wnid>.tar` for each class."""
    index = 0
    with tarfile.open(paths[0], "r:") as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                for image in inner:
                    if index >= skip:
                        yield {
                            "file_name": image.name,
                            "image": inner.extractfile(image).read(),
                            "label": member.name.removesuffix(".tar"),
                        }
                    index += 1


def _imagenet_validation(paths: Sequence[Path], skip: int) -> Iterator[TfdsExample]:
    """Yields examples of `ILSVRC2012_val_00000001.JPEG`, ..., with labels from a file of TFDS."""
    import tensorflow_datasets as tfds

    file = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    labels = file.read_text().split()
    with tarfile.open(paths[1], "r:") as tar:
        for index, member in enumerate(tar):
            if index >= skip:
                number = int(re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", member.name)[1])
                yield {
                    "file_name": member.name,
                    "image": tar.extractfile(member).read(),
                    "label": labels[number - 1],
                }


def _make_cifar(
    archive: str,
    size: int,
    checksum: str,
    folder: str,
    files: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
) -> DataSet:
    url = f"https://www.cs.toronto.edu/~kriz/{archive}"
    read = partial(_cifar, folder=folder, labels=tuple(names))
    sizes = {"train": 50_000, "test": 10_000}
    return DataSet(
        (Archive(archive, size, f"sha256:{checksum}", url),),
        {split: Split(partial(read, files=files[split]), sizes[split]) for split in sizes},
        {feature: f"{folder}/{file}" for feature, file in names.items()},
    )


def _make_imagenette(folder: str, size: int, checksum: str) -> DataSet:
    url = f"https://s3.amazonaws.com/fast-ai-imageclas/{folder}.tgz"
    return DataSet(
        (Archive(f"{folder}.tgz", size, f"sha256:{checksum}", url),),
        {
            "train": Split(partial(_imagenette, folder=f"{folder}/train"), 9_469),
            "validation": Split(partial(_imagenette, folder=f"{folder}/val"), 3_925),
        },
    )


_imagenet = partial(Archive, url="https://image-net.org/download-images", by_hand=True)

# Sizes and SHA-256 checksums are from TFDS; the MD5 checksums are from ImageNet's publisher.
SETS: Mapping[str, DataSet] = {
    "cifar10": _make_cifar(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        {"label": "batches.meta.txt"},
    ),
    "cifar100": _make_cifar(
        "cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
        {"train": ["train.bin"], "test": ["test.bin"]},
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
    "imagenette/full-size-v2": _make_imagenette(
        "imagenette2",
        1_557_161_267,
        "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd",
    ),
    "imagenette/320px-v2": _make_imagenette(
        "imagenette2-320",
        341_663_724,
        "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
    ),
    "imagenette/160px-v2": _make_imagenette(
        "imagenette2-160",
        99_003_388,
        "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
    ),
    "imagenet2012": DataSet(
        (
            _imagenet(
                "ILSVRC2012_img_train.tar", 147_897_477_120, "md5:1d675b47d978889d74fa0da5fadfb00e"
            ),
            _imagenet(
                "ILSVRC2012_img_val.tar", 6_744_924_160, "md5:29b22e2961454d5413ddabcf34fc5622"
            ),
        ),
        {
            "train": Split(_imagenet_train, 1_281_167),
            "validation": Split(_imagenet_validation, 50_000),
        },
    ),
}
