"""Small archives in the formats in which CIFAR, Imagenette and ImageNet are published."""

import dataclasses
import hashlib
import io
import tarfile

import numpy as np
from PIL import Image

from repvgg_jax.data.prepare.official import SETS

CIFAR_NAMES = {
    "cifar10": {"batches.meta.txt": [f"kind{i}" for i in range(10)]},
    "cifar100": {
        "coarse_label_names.txt": [f"coarse{i}" for i in range(20)],
        "fine_label_names.txt": [f"fine{i}" for i in range(100)],
    },
}


def photograph(seed, kind="JPEG", mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 5, 11, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, kind)
    return data.getvalue()


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_bytes(members, path):
    return write_tar(path, members).read_bytes()


def describing(path, archive):
    """Returns the archive's entry as if this file were the official one."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dataclasses.replace(archive, size=path.stat().st_size, checksum=f"sha256:{digest}")


def with_archives(name, paths):
    """Returns the data set `name` with these files as its archives."""
    archives = tuple(map(describing, paths, SETS[name].archives))
    return {name: dataclasses.replace(SETS[name], archives=archives)}


def make_cifar(folder, name="cifar10", rows=4):
    """Writes the archive; returns it and its rows of labels and pixels by split."""
    rng = np.random.default_rng(0)
    labels = len(CIFAR_NAMES[name])
    prefix, train, test = {
        "cifar10": (
            "cifar-10-batches-bin",
            [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test_batch.bin",
        ),
        "cifar100": ("cifar-100-binary", ["train.bin"], "test.bin"),
    }[name]
    data = {file: rng.integers(0, 256, (rows, labels + 3072), np.uint8) for file in [*train, test]}
    for table in data.values():
        table[:, :labels] %= np.array([10] if labels == 1 else [20, 100], np.uint8)
    members = [(f"{prefix}/{file}", table.tobytes()) for file, table in reversed(data.items())]
    members += [
        (f"{prefix}/{file}", ("\n".join(names) + "\n\n").encode())
        for file, names in CIFAR_NAMES[name].items()
    ]
    path = write_tar(folder / SETS[name].archives[0].file_name, members, "w:gz")
    return path, {"train": np.concatenate([data[file] for file in train]), "test": data[test]}


def make_imagenette(folder, count=3):
    import tensorflow_datasets as tfds

    wnids = tfds.builder_cls("imagenette")(data_dir=folder / "none").info.features["label"].names
    images = {
        (split, wnid, f"{wnid}_{i}.JPEG"): photograph(100 * i + index)
        for split in ("val", "train")
        for index, wnid in enumerate(wnids)
        for i in range(count if split == "train" else 1)
    }
    members = [(f"imagenette2-160/{'/'.join(where)}", data) for where, data in images.items()]
    members.insert(3, ("imagenette2-160/noise.csv", b"no image"))
    members.insert(5, ("imagenette2-160/train/n01440764/._n01440764_1.JPEG", b"no image"))
    return write_tar(folder / "imagenette2-160.tgz", members, "w:gz"), images


def make_imagenet(folder, classes=3, count=4):
    """Writes two archives; one image is CMYK, and one is a PNG with the name of a JPEG."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_cls("imagenet2012")(data_dir=folder / "none")
    names = builder.info.features["label"].names[:classes]
    train = {
        wnid: [(f"{wnid}_{i}.JPEG", photograph(50 * label + i)) for i in range(count)]
        for label, wnid in reversed(list(enumerate(names)))
    }
    train[names[0]][0] = (f"{names[0]}_0.JPEG", photograph(7, "JPEG", "CMYK"))
    train[names[1]][0] = (f"{names[1]}_0.JPEG", photograph(8, "PNG"))
    validation = [(f"ILSVRC2012_val_{i:08d}.JPEG", photograph(900 + i)) for i in (3, 1, 2)]
    inner = folder / "inner.tar"
    paths = [
        write_tar(
            folder / "ILSVRC2012_img_train.tar",
            [(f"{wnid}.tar", tar_bytes(images, inner)) for wnid, images in train.items()],
        ),
        write_tar(folder / "ILSVRC2012_img_val.tar", validation),
    ]
    return paths, train, validation


def stock(name, data_dir, split):
    """Opens a data set with stock TFDS, with images as bytes."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return tfds.data_source(name, data_dir=data_dir, split=split, decoders=decoders)
