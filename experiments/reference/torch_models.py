"""The nets of torchvision and timm that have a counterpart here, with random weights."""

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from repvgg_jax.errors import UsageError
from repvgg_jax.interop.layouts import LAYOUTS
from repvgg_jax.nets import create

PACKAGES = ("torchvision", "timm")
# Our name of a model -> the package's name, or a function of the package that makes the model; None
# if the package's model of that name is another net. Models that are not listed have the same name,
# apart from underscores that are not between digits: regnetx_400mf is regnet_x_400mf.
NAMES: dict[str, dict[str, str | Callable[..., torch.nn.Module] | None]] = {
    "torchvision": {
        "googlenet": None,  # here without BatchNorms, as in the paper
        "googlenet_bn": lambda package, **options: package.models.googlenet(
            aux_logits=False, init_weights=False, **options
        ),
        "mobilenetv2_100": "mobilenet_v2",
        "regnety_8gf": None,  # here, the first stage has 168 channels as in the paper, not 224
        "shufflenetv2_050": "shufflenet_v2_x0_5",
        "shufflenetv2_100": "shufflenet_v2_x1_0",
        "shufflenetv2_150": "shufflenet_v2_x1_5",
        "shufflenetv2_200": "shufflenet_v2_x2_0",
    },
    "timm": {"xception": "legacy_xception"}
    | {
        f"regnet{kind}_{size}": f"regnet{kind}_{number}"
        + ("_tv" if kind + number in ("x004", "y008") else "")
        for kind in "xy"
        for size, number in (
            ("400mf", "004"),
            ("800mf", "008"),
            ("1_6gf", "016"),
            ("3_2gf", "032"),
            ("8gf", "080"),
            ("12gf", "120"),
            ("16gf", "160"),
            ("32gf", "320"),
        )
    },
}


def _mobilenet_v2(multiplier: float) -> Callable[..., torch.nn.Module]:
    return lambda package, **options: package.models.mobilenet_v2(width_mult=multiplier, **options)


def _mobilenet_v1(multiplier: float) -> Callable[..., torch.nn.Module]:
    return lambda package, **options: package.models.efficientnet._gen_mobilenet_v1(
        "mobilenetv1_100", multiplier, **options
    )


for _percent in (25, 50, 75, 140):
    NAMES["torchvision"][f"mobilenetv2_{_percent:03}"] = _mobilenet_v2(_percent / 100)
    NAMES["timm"][f"mobilenetv1_{_percent:03}"] = _mobilenet_v1(_percent / 100)


def imported(package: str) -> Any:
    """Returns torchvision or timm, which imports it; also without torchvision's operators.

    Builds of torchvision and torch that do not match lack the compiled operators. The import needs
    them, but no classifier does.
    """
    if package not in sys.modules and not _LIBRARIES:
        try:
            library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
        except RuntimeError:
            pass  # the compiled operators define them
    return importlib.import_module(package)


_LIBRARIES: list[torch.library.Library] = []  # definitions last as long as these


def packages_with(name: str) -> list[str]:
    """Returns the installed packages that have a model of this library."""
    return [package for package in PACKAGES if _maker(name, package) is not None]


def counterpart(name: str, package: str, **options: Any) -> torch.nn.Module:
    """Returns a package's counterpart of a model of this library, made with the package's options.

    Raises:
      UsageError: if the package is not installed or has no counterpart.
    """
    maker = _maker(name, package)
    if maker is None:
        raise UsageError(f"{package} is not installed, or has no counterpart of {name}")
    return maker(**options)


_SQUEEZE_EXCITE = re.compile("SE|Squeeze|Gate$")  # classes of the packages and of `torch_repvgg`


@torch.no_grad()
def randomize(module: torch.nn.Module, images: np.ndarray) -> torch.nn.Module:
    """Draws all weights of a module, and puts it in evaluation mode.

    Kernels keep the size of activations, except for smaller ones of squeeze-and-excite, whose gates
    would amplify rounding errors. BatchNorm scales have both signs. Statistics are off
    those of the images, [batch, height, width, 3], by a few percent: they are nowhere 0 and 1, and
    logits depend on all layers. With statistics of other images, deep EfficientNets would amplify
    rounding errors to the size of the logits.
    """
    torch.manual_seed(0)
    norms = [each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    gates = [each for each in module.modules() if _SQUEEZE_EXCITE.match(type(each).__name__)]
    of_gates = {id(value) for gate in gates for value in gate.parameters()}
    for name, value in module.named_parameters():
        if value.ndim > 1:
            scale = 0.3 if id(value) in of_gates else 1.0
            value.normal_(0, scale * (2 / value[0].numel()) ** 0.5)
        elif name.endswith("bias"):  # small in VGG, whose logits they would be otherwise
            value.normal_(0, 0.2 if norms else 0.01)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        sign = torch.where(torch.rand_like(norm.weight) < 0.5, -1.0, 1.0)
        norm.weight.copy_(sign * (0.5 + torch.rand_like(sign)))
        norm.reset_running_stats()
        norm.momentum = None  # the statistics become those of the batch
    module.eval()
    for norm in norms:
        norm.train()  # and nothing else, such as dropout and stochastic depth
    module(torch.from_numpy(images).permute(0, 3, 1, 2))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
        norm.running_mean += 0.02 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.exp(0.05 * torch.randn_like(norm.running_var))
    return module.eval()


def random_images(count: int, side: int) -> np.ndarray:
    """Returns images [count, side, side, 3]: noise at two scales, pixels and quarters of a side.

    With noise of single pixels only, all images would have nearly the same means and logits.
    """
    draw = np.random.default_rng(0).standard_normal
    coarse = draw((count, 4, 4, 3), np.float32)
    index = np.arange(side) * 4 // side
    return coarse[:, index][:, :, index] + draw((count, side, side, 3), np.float32)


def name_in(name: str, package: str) -> str | None:
    """Returns the name of a model of this library in an installed package; None if it has none."""
    found = NAMES[package].get(name, name)
    if not isinstance(found, str) or type(create(name)) not in LAYOUTS[package]:
        return None
    return _listed(package).get(_compact(found))


@functools.cache
def _listed(package: str) -> dict[str, str]:
    """Returns the names of a package's models, by their `_compact` ones."""
    module = imported(package)
    listed = (
        module.models.list_models(module.models)
        if package == "torchvision"
        else module.list_models()
    )
    return {_compact(each): each for each in listed}


def _maker(name: str, package: str) -> Callable[..., torch.nn.Module] | None:
    """Returns a function of options that makes the counterpart; None if the package has none."""
    if importlib.util.find_spec(package) is None or type(create(name)) not in LAYOUTS[package]:
        return None
    module, found = imported(package), NAMES[package].get(name)
    if callable(found):
        return lambda **options: found(module, **options)
    there = name_in(name, package)
    if there is None:
        return None
    make = module.models.get_model if package == "torchvision" else module.create_model
    return lambda **options: make(there, **options)


def _compact(name: str) -> str:
    """Returns a name without underscores, except those between digits, which can be a point."""
    return re.sub(r"(?<!\d)_|_(?!\d)", "", name)
