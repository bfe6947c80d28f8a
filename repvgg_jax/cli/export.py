"""`--mode=export`: writes a run's net for other programs, and verifies each file."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

import repvgg_jax.export as exporters
from repvgg_jax.checkpoint.load import fused_step_of, load, load_trained
from repvgg_jax.cli.evaluate import open_evaluation
from repvgg_jax.cli.fuse import fuse_and_save
from repvgg_jax.cli.report import read_report, write_report
from repvgg_jax.cli.table import Table
from repvgg_jax.config.build import make_transform
from repvgg_jax.config.classes import class_names
from repvgg_jax.config.describe import model_name
from repvgg_jax.config.workdir import lock_run, named_write_errors, read_config
from repvgg_jax.data.images import normalize
from repvgg_jax.errors import RunError, UsageError, check_known
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.verification import BATCHES, import_package, random_pixels
from repvgg_jax.fusion.certificate import FILE as CERTIFICATE
from repvgg_jax.runtime.files import read_json
from repvgg_jax.runtime.mesh import make_mesh
from repvgg_jax.runtime.processes import inform_once, warn_once
from repvgg_jax.serve.model import names_of_outputs

FOLDER = "export"  # subfolder of a workdir with the exported files


class Format(NamedTuple):
    """A format: the ending of its files, the packages that it needs, and the options it takes."""

    ending: str
    packages: tuple[str, ...]
    extra: str
    options: tuple[str, ...]


FORMATS = {
    "onnx": Format(
        ".onnx", ("onnx", "onnxruntime"), "export", ("opset", "dynamic_size", "preprocess")
    ),
    "stablehlo": Format(".stablehlo", (), "export", ("dynamic_size", "preprocess")),
    "torch": Format(".pth", ("torch",), "torch", ("preprocess",)),
    "safetensors": Format(".safetensors", ("safetensors",), "export", ()),
    "tflite": Format(".tflite", ("tensorflow",), "tflite", ("preprocess",)),
}


def run_export(
    workdir: Path,
    format: list[str],
    opset: int | None = None,
    dynamic_size: bool = False,
    preprocess: bool = False,
    allow_train_form: bool = False,
    step: int | None = None,
) -> None:
    """Writes a run's fused net to `<workdir>/export/` in each format, and verifies the files.

    Each file is read back with the tool that it is for, and is kept if its logits of evaluation
    images are those of the net. `report.json` and the files' metadata have the errors. A run
    without fused weights of the step is fused first, as by `--mode=fuse`.

    Args:
      workdir: folder of a run.
      format: names of `FORMATS`.
      opset: opset of ONNX; None for the exporter's default.
      dynamic_size: True for images of any height and width.
      preprocess: True for models that take uint8 images, and normalize them.
      allow_train_form: True to export a net that cannot be fused, as it is.
      step: step of the checkpoint; the latest by default.

    Raises:
      UsageError: if there is no run, a package is missing, an option is invalid, or the net cannot
        be fused or exported.
      HeldError: if another process trains in the workdir.
      RunError: if a file does not compute what the net computes, or cannot be written.
    """
    if jax.process_count() > 1:
        raise UsageError("--mode=export runs in a single process")
    switches = {"dynamic_size": dynamic_size or None, "preprocess": preprocess or None}
    options = _options(format, {"opset": opset, **switches})
    config = read_config(workdir)
    with lock_run(workdir):
        images = _read_images(config, workdir)
        net, variables, step = _deploy_form(config, workdir, step, images, allow_train_form)
        metadata = _metadata(config, workdir, net)
        inform_once(f"exporting {model_name(config)}, {metadata.of_net(net).form}, step {step}")
        folder = _make_folder(workdir)
        table = _table(folder)
        for name in options:
            path = _path(folder, name)
            written = getattr(exporters, name)(
                net,
                variables,
                path,
                metadata=dataclasses.replace(
                    metadata, preprocess=preprocess and "preprocess" in FORMATS[name].options
                ),
                images=images.batches(),
                allow_train_form=allow_train_form,
                **options[name],
            )
            _report(workdir, name, path, written, step, images)
            size = f"{path.stat().st_size / 1e6:.2f} MB"
            table.add(name, str(path), size, f"{written.export_error:.1e}")
    inform_once(
        "errors are max |difference| / max |logit| against the net here, over " + images.described()
    )


def _options(names: list[str], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns format -> its options, in the given order, without those that are None.

    Raises:
      UsageError: for an unknown format, a missing package, or an option that no format takes.
    """
    for name in names:
        check_known("--format", name, FORMATS)
    if not names:
        raise UsageError(f"--format is empty; choose from {', '.join(FORMATS)}")
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        if not any(option in FORMATS[name].options for name in names):
            takers = [name for name, kind in FORMATS.items() if option in kind.options]
            raise UsageError(
                f"--{option} has no effect on {', '.join(names)}; it is for {', '.join(takers)}"
            )
    for name in names:
        for needed in FORMATS[name].packages:
            import_package(needed, FORMATS[name].extra)
    return {
        name: {
            option: value
            for option, value in given.items()
            if option in FORMATS[name].options and option != "preprocess"
        }
        for name in names
    }


class _Images(NamedTuple):
    """Different images of a run, uint8 [count, side, side, 3], and their kind.

    Attributes:
      pixels: the images.
      kind: "evaluation" or "random".
    """

    pixels: np.ndarray
    kind: str

    @property
    def different(self) -> int:
        """Number of different images in the batches on which files are verified."""
        return min(len(self.pixels), sum(BATCHES))

    def batches(self) -> np.ndarray:
        """Returns the images on which files are verified; those of a small split are repeated."""
        return np.resize(self.pixels, (sum(BATCHES), *self.pixels.shape[1:]))

    def described(self) -> str:
        """Returns text on the batches, such as "batches of 1 and 3 evaluation images"."""
        text = f"batches of {' and '.join(map(str, BATCHES))} {self.kind} images"
        return text if self.different == sum(BATCHES) else f"{text}, {self.different} different"


def _read_images(config: ConfigDict, workdir: Path) -> _Images:
    """Returns evaluation images, or random ones, with a warning, if the data are not there."""
    count = max(config.fuse.verify_images, sum(BATCHES))
    try:
        return _Images(open_evaluation(config, workdir).pixels(count), "evaluation")
    except RunError as error:
        warn_once("random images are used for the verification: %s", error)
        return _Images(random_pixels(count, make_transform(config).eval_size), "random")


def _deploy_form(
    config: ConfigDict, workdir: Path, step: int | None, images: _Images, allow_train_form: bool
) -> tuple[nn.Module, Any, int]:
    """Returns the fused net, its variables and their step; fuses the checkpoint if need be.

    Raises:
      UsageError: if the net cannot be fused, and its train form is not allowed.
    """
    if (fused := fused_step_of(workdir, step)) is not None:
        return *load(workdir, fused=True, step=fused), fused
    net, variables, step = load_trained(workdir, step)
    if not net.fusable:
        if not allow_train_form:
            raise UsageError(
                f"block={net.block!r} cannot be fused, so that the run has only the train form; "
                "--allow_train_form exports it, and the metadata of the files say so"
            )
        return net, variables, step
    pixels = images.pixels[: config.fuse.verify_images]
    inform_once(
        f"fusing the checkpoint of step {step} first, and verifying it; "
        f"{images.kind} images: {len(pixels)}"
    )
    normalized = normalize(pixels, config.data.mean, config.data.std)
    pair, _ = fuse_and_save(
        (net, variables),
        step,
        workdir,
        normalized,
        config.fuse.tolerance,
        make_mesh(),
        image_kind=images.kind,
    )
    return *pair, step


def _metadata(config: ConfigDict, workdir: Path, net: nn.Module) -> Metadata:
    """Returns what the run knows about its images, classes and fusion."""
    transform = make_transform(config)
    resized = transform.augmentation == "resized_crop"
    names, fusion_error = class_names(workdir), None
    if net.is_fused and (workdir / CERTIFICATE).exists():
        certificate = read_json(workdir / CERTIFICATE, "run --mode=fuse to write it")
        fusion_error = certificate["max_relative_error"]
    return Metadata(
        names=names and names_of_outputs(names, net.num_classes, str(workdir)),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        image_size=transform.eval_size,
        crop_pct=transform.eval_size / transform.resize if resized else 1.0,
        model=model_name(config),
        fusion_error=fusion_error,
    )


def _make_folder(workdir: Path) -> Path:
    folder = workdir / FOLDER
    with named_write_errors(workdir):
        folder.mkdir(exist_ok=True)
    return folder


def _path(folder: Path, name: str) -> Path:
    """Returns the path of the file of a format."""
    return folder / f"model{FORMATS[name].ending}"


def _table(folder: Path) -> Table:
    """Returns an empty table, wide enough for each format."""
    width = max(len(str(_path(folder, name))) for name in FORMATS)
    name_width = max(map(len, FORMATS))
    columns = {"format": f"<{name_width}", "file": f"<{width}"}
    return Table(columns | {"size": ">9", "relative error": ">14"})


def _report(
    workdir: Path, name: str, path: Path, metadata: Metadata, step: int, images: _Images
) -> None:
    """Adds a verified file to `export` in `report.json`."""
    report = read_report(workdir)
    entry = {
        "file": str(path.relative_to(workdir)),
        "bytes": path.stat().st_size,
        "relative_error": metadata.export_error,
        "images": images.kind,
        "different_images": images.different,
        "form": metadata.form,
        "step": step,
    }
    report["export"] = report.get("export", {}) | {name: entry}
    write_report(workdir, report)
