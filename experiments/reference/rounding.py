"""Errors of logits, judged by the rounding errors of a PyTorch model itself."""

from typing import Any

import numpy as np

# Sums in another order round differently: in docs/results/frameworks.md, errors here are at most
# 1.8 times those of the same model in PyTorch.
FACTOR = 5
# Rounding error of a model above which it could hide another function: nets that amplify it so much
# amplify other differences as well, up to the size of the logits, which is 1.
SOUND = 0.01
DEPENDENT = 0.1  # least difference between the logits of two images; relative, as the errors


def errors(module: Any, images: np.ndarray, *logits: np.ndarray) -> list[float]:
    """Returns the errors of a PyTorch module's logits of images, and those of `logits`.

    Each is max |difference| / max |logits| to the logits of the module in float64. The module is in
    evaluation mode, and the images are [batch, height, width, 3].
    """
    import torch

    with torch.no_grad():
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
        theirs = module(inputs).numpy()
        exact = module.double()(inputs.double()).numpy()
        module.float()  # the same values as before
    return [float(np.abs(each - exact).max() / np.abs(exact).max()) for each in (theirs, *logits)]


def sound(own: float) -> bool:
    """Returns True if a module's own rounding error is too small to hide a real difference."""
    return own < SOUND


def agree(own: float, *ours: float) -> bool:
    """Returns True if the errors `ours` are of the size of the module's own rounding error."""
    return sound(own) and all(each <= FACTOR * own for each in ours)  # False for NaN


def depend_on_images(logits: np.ndarray) -> bool:
    """Returns True if logits [image, class] differ between images, and so depend on all layers."""
    return bool(np.ptp(logits, axis=0).max() > DEPENDENT * np.abs(logits).max())
