"""DiracNet computes what its description says, written in PyTorch."""

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.runtime.compilation import jit_once
from tests.support.variables import random_images, random_variables

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from torch.nn import functional  # noqa: E402

NARROW = {"depths": (2, 1), "widths": (4, 8), "strides": (1, 2)}


def described(net, variables, images):
    """Returns the logits by arXiv 1706.00388, section 3, of the net's variables."""
    tensors = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), variables)
    params, stats = tensors["params"], tensors["batch_stats"]

    def norm_and_relu(x, name, layer):
        (scale, bias), (mean, var) = (
            [tree[name][layer][key] for key in keys]
            for tree, keys in ((params, ("scale", "bias")), (stats, ("mean", "var")))
        )
        return functional.batch_norm(x, mean, var, scale, bias, eps=1e-5).relu()

    kernel = params["stem"]["conv_kxk"]["kernel"].permute(3, 2, 0, 1)
    x = functional.conv2d(images.permute(0, 3, 1, 2), kernel, stride=2, padding=3)
    x = functional.max_pool2d(norm_and_relu(x, "stem", "bn_kxk"), 3, stride=2, padding=1)
    for stage, depth in enumerate(net.depths):
        x = functional.max_pool2d(x, 2) if stage else x
        for index in range(depth):
            name = f"stage{stage}_block{index}"
            kernel = params[name]["conv_kxk"]["kernel"].permute(3, 2, 0, 1)
            unit = functional.normalize(kernel.flatten(1)).view_as(kernel)
            alpha, beta = (params[name][key].view(-1, 1, 1, 1) for key in ("alpha", "beta"))
            delta = torch.nn.init.dirac_(torch.empty_like(kernel))
            x = functional.conv2d(x, alpha * delta + beta * unit, padding=1)
            x = norm_and_relu(x, name, "bn")
    head = params["head"]
    return (x.mean((2, 3)) @ head["kernel"] + head["bias"]).numpy()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param("diracnet18", NARROW, marks=pytest.mark.medium),
        pytest.param("diracnet18", {}, marks=pytest.mark.slow),
        pytest.param("diracnet34", {}, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_description_in_both_forms(name, overrides):
    net = rj.create(name, num_classes=10, **overrides)
    variables = random_variables(net, 1)
    images = random_images(2, 64, 64, 3)
    expected = described(net, variables, torch.from_numpy(np.array(images)))
    for form, weights in ((net, variables), rj.fuse(net, variables)):
        logits = jit_once(form.apply)(weights, images)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
