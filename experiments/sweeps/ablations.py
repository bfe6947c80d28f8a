"""The ablations as data: sweep -> variant -> fields that differ from the protocol's config.

Published figures are ImageNet top-1 in percent, copied from the papers' tables. Nets and data are
different here, so only the order of variants can be compared.
"""

from typing import Any

from experiments.sweeps.networks import NETWORKS, NETWORKS_NOTE, SMALL_NETWORKS, net_fields
from experiments.sweeps.spec import Overrides, PaperPair, Sweep

TABLE_6 = "RepVGG (arXiv 2101.03697), Table 6: RepVGG-B0 on ImageNet, 120 epochs"
TABLE_7 = "RepVGG (arXiv 2101.03697), Table 7: RepVGG-B0 on ImageNet, 120 epochs"
DBB_TABLE_2 = "DBB (arXiv 2103.13425), Table 2: ResNet-18 on ImageNet"
DIRAC_START = "The BatchNorm scales of `dirac` start at 1 (in its paper: between 0 and 1)."
PLAIN = {"model.branches": ("kxk",)}
BLOCKS = ["acb", "dbb", "orepa", "mobileone", "qarepvgg", "dirac", "trivial", "doconv"]
BLOCKS += ["expandnet", "expandnet_ck", "csla"]
BLOCKS += ["identity_without_bn", "post_addition_bn", "relu_in_branch"]
TOP1_TABLE_7 = {
    "identity_without_bn": 74.18,
    "post_addition_bn": 73.52,
    "full": 75.14,
    "relu_in_branch": 75.69,
    "dirac": 73.97,
    "trivial": 73.51,
    "acb": 73.58,
    "residual_reorg": 74.56,
}


def _block(name: str) -> Overrides:
    return {"model.block": name}


def _depths(*depths: int) -> Overrides:
    return {"model.depths": depths}


def _with_plain(variants: dict[str, Overrides]) -> dict[str, Overrides]:
    """Returns each variant, followed by the plain net of the same depth."""
    return {
        name: entry
        for full, fields in variants.items()
        for name, entry in ((full, fields), (f"plain_{full}", fields | PLAIN))
    }


# Layers are counted from the stem: for depths (1, 2, 4, 4, 1), stage 2 is 3 to 6, stage 3 7 to 10.
def _groups(groups: int, layers: range | None = None) -> Overrides:
    where = {} if layers is None else {"model.grouped_layers": tuple(layers)}
    return {"model.groups": groups, **where}


def _deep(activation: str, initializer: str, **fields: Any) -> Overrides:
    """Returns fields of a plain net of 100 layers without BatchNorm."""
    return {
        **net_fields(
            "deep_plain", depth=100, width=32, activation=activation, initializer=initializer
        ),
        "optim.weight_decay": 0.0,
        "optim.clip_norm": 10.0,
        "optim.learning_rate": 0.1,
        "optim.rate_rules": ((r"head/.*", 30.0),),
        **fields,
    }


_MAX_NORM = {
    "optim.max_norm": 1.36,
    "optim.clip_norm": 1.0,
    "optim.learning_rate": 0.4,
    "optim.rate_rules": (),
}

# Names in "depth" number stages as the paper does, from 1, those in "groups" as the code, from 0.
SWEEPS: dict[str, Sweep] = {
    "branches": Sweep(
        title="Branches beside the 3x3",
        baseline="both",
        variants={
            "none": PLAIN,
            "identity": {"model.branches": ("kxk", "identity")},
            "1x1": {"model.branches": ("kxk", "1x1")},
            "both": {},
        },
        published={"none": 72.39, "identity": 74.79, "1x1": 73.15, "both": 75.14},
        source=TABLE_6,
    ),
    "variants": Sweep(
        title="Variants of the block",
        baseline="full",
        variants={
            **{name: {} if name == "full" else _block(name) for name in TOP1_TABLE_7},
            "residual_reorg": {"model.name": "residual_reorg_b0"},
        },
        published=TOP1_TABLE_7,
        source=TABLE_7,
        note="`relu_in_branch` cannot be fused, and `residual_reorg` deploys as a residual net. "
        f"{DIRAC_START}",
    ),
    "groups": Sweep(
        title="Grouped convolutions and their layers",
        baseline="1",
        variants={
            "1": {},
            "2": _groups(2),
            "4": _groups(4),
            "2_every_layer": _groups(2, range(1, 12)),
            "4_every_layer": _groups(4, range(1, 12)),
            "4_stages_1_2": _groups(4, range(1, 7)),
            "4_stages_3_4": _groups(4, range(7, 12)),
        },
        published={"1": 78.37, "2": 77.78, "4": 77.58},
        source="RepVGG (arXiv 2101.03697), Table 4: B1, B1g2 and B1g4 on ImageNet, 120 epochs",
        note="`2` and `4` have groups in every second layer, as in the paper; the other names say "
        "which layers. The stem is stage 0, so that stages 1 to 4 are the paper's 2 to 5.",
    ),
    "depth": Sweep(
        title="Depth of stage 3 (the paper's stage 4) and of all stages, with and without branches",
        baseline="base",
        variants=_with_plain(
            {
                "base": {},
                "stage4_8": _depths(1, 2, 4, 8, 1),
                "stage4_16": _depths(1, 2, 4, 16, 1),
                "stage4_32": _depths(1, 2, 4, 32, 1),
                "stage4_64": _depths(1, 2, 4, 64, 1),
                "all_x2": _depths(1, 4, 8, 8, 1),
                "all_x8": _depths(1, 16, 32, 32, 1),
            }
        ),
        note="`stage4_N` has N layers in the paper's stage 4, `all_xN` N times the layers in all "
        "stages but the first and the last; `plain_` has the 3x3 branch only.",
    ),
    "blocks": Sweep(
        title="Re-parameterizable blocks",
        baseline="repvgg",
        variants={
            "repvgg": {},
            "plain": PLAIN,
            **{name: _block(name) for name in BLOCKS},
        },
        published={
            "repvgg": TOP1_TABLE_7["full"],
            "plain": 72.39,
            **{name: top1 for name, top1 in TOP1_TABLE_7.items() if name in BLOCKS},
        },
        source=f"{TABLE_7}; plain: its Table 6",
        own_papers={
            "acb": PaperPair("plain", 69.54, 70.53, f"{DBB_TABLE_2}, as ACNet"),
            "dbb": PaperPair("plain", 69.54, 70.99, DBB_TABLE_2),
            "orepa": PaperPair(
                "repvgg", 72.41, 73.04, "OREPA (arXiv 2204.00826), Table 4: RepVGG-A0 on ImageNet"
            ),
            "doconv": PaperPair(
                "plain", 68.96, 69.97, "DO-Conv (arXiv 2006.12030): 18 plain layers on ImageNet"
            ),
            "csla": PaperPair(
                "repvgg", 78.41, 78.47, "RepOptimizer (arXiv 2205.15242), Table 2: B1 on ImageNet"
            ),
        },
        note="The scales of `csla` start at 1, those of RepOptimizer's hyper-search at "
        f"sqrt(2 / l) in layer l of a stage. {DIRAC_START}",
    ),
    "width": Sweep(
        title="Width",
        baseline="x1",
        variants={
            "x0.5": {"model.widths": (8, 16, 32, 64, 128)},
            "x1": {},
            "x1.5": {"model.widths": (24, 48, 96, 192, 384)},
            "x2": {"model.widths": (32, 64, 128, 256, 512)},
        },
    ),
    "init": Sweep(
        title="Initialization of three branches and of one",
        baseline="default",
        variants=_with_plain(
            {
                "default": {},
                **{name: {"model.initializer": name} for name in ("lecun", "he", "timm")},
            }
        ),
        note="Variances of kernels: `default` 1 / (3 fan_in), uniform, as in PyTorch; `lecun` "
        "1 / fan_in; `he` 2 / fan_in; `timm` 2 / fan_out, with BatchNorm scales of about 0.1.",
    ),
    "deep_init": Sweep(
        title="Initialization of 100 plain layers without BatchNorm",
        baseline="delta_orthogonal_tanh",
        variants={
            "delta_orthogonal_tanh": _deep("tanh", "delta_orthogonal"),
            "he_tanh": _deep("tanh", "he"),
            "default_tanh": _deep("tanh", "default"),
            "delta_orthogonal_relu": _deep("relu", "delta_orthogonal"),
            "he_relu": _deep("relu", "he"),
            "delta_orthogonal_leaky_relu_max_norm": _deep(
                "leaky_relu", "delta_orthogonal", **_MAX_NORM
            ),
        },
        note="Learning rates are those of configs/deep_plain.py, not tuned for this depth.",
    ),
    "bn_group_size": Sweep(
        title="Number of images per BatchNorm statistic",
        baseline="batch",
        variants={
            "batch": {},
            **{str(size): {"model.bn_group_size": size} for size in (64, 32, 16, 8, 4)},
        },
        note="The batch is 128. The paper takes statistics over the 32 images of one GPU.",
    ),
    "weight_decay": Sweep(
        title="Weight decay: parameters and strength",
        baseline="released",
        variants={
            "released": {},
            "kernels": {"optim.decay_rules": ((r".*kernel", 1.0),)},
            "kernels_and_scales": {"optim.decay_rules": ((r".*(kernel|scale)", 1.0),)},
            "everything": {"optim.decay_rules": ((r".*", 1.0),)},
            "kxk_kernels": {
                "optim.decay_rules": ((r".*/conv_1x1/kernel", 0.0), (r".*kernel", 1.0))
            },
            "custom_l2": {"optim.custom_l2": True},
            "none": {"optim.weight_decay": 0.0},
            "1e-4": {"optim.weight_decay": 1e-4},
        },
        note="`released` decays kernels and the identity BatchNorm's scale, by 5e-4. `custom_l2` "
        "is the released code's option, which decays the sum of the 1x1 and the center tap.",
    ),
    "recipe": Sweep(
        title="Training recipe",
        baseline="base",
        variants={
            "base": {},
            "label_smoothing": {"optim.label_smoothing": 0.1},
            "mixup": {"train.mixup": 0.2},
            "cutmix": {"train.cutmix": 1.0},
            "autoaugment": {"data.policy": "autoaugment_cifar10"},
            "randaugment": {"data.policy": "randaugment"},
            "erasing": {"data.erasing": 0.25},
            "no_augmentation": {"data.augmentation": "none"},
            "nesterov": {"optim.nesterov": True},
            "average": {"optim.ema_decay": 0.99},
            "half_rate": {"optim.learning_rate": 0.1},
            "double_rate": {"optim.learning_rate": 0.4},
        },
    ),
    "quantization": Sweep(
        title="Compute type",
        baseline="float32",
        variants={
            "float32": {"model.dtype": "float32"},
            "bfloat16": {"model.dtype": "bfloat16"},
            "qarepvgg_float32": {"model.dtype": "float32", "model.block": "qarepvgg"},
            "qarepvgg_bfloat16": {"model.dtype": "bfloat16", "model.block": "qarepvgg"},
        },
        note="The dtype in training and of both forms. int8, QARepVGG's purpose, is untested.",
    ),
    "comparison": Sweep(
        title="RepVGG and other networks of the same cost",
        baseline="repvgg",
        variants=NETWORKS,
        note=f"{NETWORKS_NOTE} Fused, each net has 41 million multiply-adds, to 5%.",
    ),
    "comparison_small": Sweep(
        title="RepVGG and other networks of the same small cost",
        baseline="repvgg",
        variants=SMALL_NETWORKS,
        note=f"{NETWORKS_NOTE} Fused, each net has 10.0 to 10.5 million multiply-adds, a quarter "
        "of those in `comparison`, by a first layer of stride 2, or half the width (VGG).",
    ),
}
