"""The spellings of the names of models, here, in torchvision and timm, and in papers."""

import re

from repvgg_jax.errors import compact


def spelling(name: str) -> str:
    """Returns a canonical form of a model's name, equal for all of its usual spellings.

    Widths are in percent and left out if they are 100, and RegNets' sizes are in 100 MFLOPs, with
    three digits, as in timm's names.

    Example:
      >>> spelling("shufflenet_v2_x0_5") == spelling("shufflenetv2_050")
      True
      >>> spelling("RegNetX-3.2GF") == spelling("regnetx_3_2gf") == spelling("regnetx_032")
      True
      >>> spelling("mobilenet_v2") == spelling("mobilenetv2_100")
      True
    """
    name = name.lower()
    name = re.sub(r"(\d+(?:[._]\d)?)([gm])f", _in_100_mflops, name)
    name = re.sub(r"x(\d)[._](\d)$", lambda width: f"{width[1]}{width[2]}0", name)
    return compact(re.sub(r"[_-]100(?![a-z\d])", "", name))


def _in_100_mflops(size: re.Match[str]) -> str:
    number = float(size[1].replace("_", "."))
    return f"{round(number * (10 if size[2] == 'g' else 0.01)):03}"
