"""Published accuracies and speeds: RepVGG (arXiv 2101.03697) and the papers of other networks."""

from typing import NamedTuple

# Both were measured at 224 pixels, except for EfficientNet-B3 (300).
TABLE_4 = "RepVGG, Table 4"  # 120 epochs, random crops and flips
TABLE_5 = "RepVGG, Table 5"  # 200 epochs, with AutoAugment, label smoothing and mixup
PAPERS_GPU = "GTX 1080Ti, float32, batch 128"


class Published(NamedTuple):
    """A net's name in the literature, its top-1 on ImageNet, and where both are from.

    Attributes:
      label: name of the net.
      top1: accuracy in percent.
      source: table or page with the accuracy.
      speed: images per second in RepVGG's Tables 4 and 5; None for nets that are not there.
      image_size: side of the images in pixels.
    """

    label: str
    top1: float
    source: str
    speed: int | None = None
    image_size: int = 224

    @property
    def family(self) -> str:
        """The name without size, such as ResNet."""
        return self.label.partition("-")[0]


# In the order in which they are measured: if the time is short, the last ones are left out.
PUBLISHED = {
    "resnet50_v1": Published("ResNet-50", 76.31, TABLE_4, 719),
    "repvgg_a0": Published("RepVGG-A0", 72.41, TABLE_4, 3256),
    "resnet18": Published("ResNet-18", 71.16, TABLE_4, 2442),
    "repvgg_a1": Published("RepVGG-A1", 74.46, TABLE_4, 2339),
    "resnet34": Published("ResNet-34", 74.17, TABLE_4, 1419),
    "repvgg_a2": Published("RepVGG-A2", 76.48, TABLE_4, 1322),
    "efficientnet_b0": Published("EfficientNet-B0", 75.11, TABLE_4, 829),
    "repvgg_b1": Published("RepVGG-B1", 78.37, TABLE_4, 685),
    "repvgg_b1g4": Published("RepVGG-B1g4", 77.58, TABLE_4, 868),
    "resnet101_v1": Published("ResNet-101", 77.21, TABLE_4, 430),
    "vgg16_bn": Published("VGG-16", 72.21, TABLE_4, 415),
    "repvgg_b2": Published("RepVGG-B2", 78.78, TABLE_4, 460),
    "repvgg_b0": Published("RepVGG-B0", 75.14, TABLE_4, 1817),
    "regnetx_3_2gf": Published("RegNetX-3.2GF", 77.98, TABLE_4, 671),
    "resnext50_32x4d": Published("ResNeXt-50", 77.46, TABLE_4, 484),
    "repvgg_b1g2": Published("RepVGG-B1g2", 77.78, TABLE_4, 792),
    "resnet152_v1": Published("ResNet-152", 77.78, TABLE_4, 297),
    "repvgg_b3": Published("RepVGG-B3", 80.52, TABLE_5, 363),
    "regnetx_12gf": Published("RegNetX-12GF", 80.55, TABLE_5, 277),
    "efficientnet_b3": Published("EfficientNet-B3", 79.31, TABLE_5, 224, 300),
    "repvgg_b3g4": Published("RepVGG-B3g4", 80.21, TABLE_5, 464),
    "repvgg_b2g4": Published("RepVGG-B2g4", 78.50, TABLE_4, 581),
    "resnext101_32x4d": Published("ResNeXt-101", 78.42, TABLE_4, 295),
}
TABLES_4_AND_5 = tuple(PUBLISHED)
REFERENCE = "resnet50_v1"  # net that the others' speed is divided by

_EFFICIENTNET = "EfficientNet, Table 2"
_MEGVII = "authors' code of ShuffleNet"
_PYCLS = "model zoo of pycls"
_SLIM = "TensorFlow's models, slim"
_TORCHVISION = "torchvision's weights, in timm's results"
PUBLISHED |= {
    "amoebaneta_f190": Published("AmoebaNet-A", 82.8, "AmoebaNet, Table 2", None, 331),
    "densenet121": Published("DenseNet-121", 74.98, "DenseNet, Table 3"),
    "densenet169": Published("DenseNet-169", 76.20, "DenseNet, Table 3"),
    "densenet201": Published("DenseNet-201", 77.42, "DenseNet, Table 3"),
    "diracnet34": Published("DiracNet-34", 72.21, "RepVGG, section 2.3"),
    "efficientnet_b1": Published("EfficientNet-B1", 79.1, _EFFICIENTNET, None, 240),
    "efficientnet_b2": Published("EfficientNet-B2", 80.1, _EFFICIENTNET, None, 260),
    "efficientnet_b4": Published("EfficientNet-B4", 82.9, _EFFICIENTNET, None, 380),
    "efficientnet_b5": Published("EfficientNet-B5", 83.6, _EFFICIENTNET, None, 456),
    "efficientnet_b6": Published("EfficientNet-B6", 84.0, _EFFICIENTNET, None, 528),
    "efficientnet_b7": Published("EfficientNet-B7", 84.3, _EFFICIENTNET, None, 600),
    "googlenet": Published("GoogLeNet", 69.8, "MobileNet, Table 8"),
    "inception_resnet_v2": Published("Inception-ResNet-v2", 80.4, _SLIM, None, 299),
    "mobilenetv1_100": Published("MobileNetV1-1.0", 70.6, "MobileNet, Table 8"),
    "nasnetalarge": Published("NASNet-A large", 82.7, _SLIM, None, 331),
    "nasnetamobile": Published("NASNet-A mobile", 74.0, _SLIM),
    "pnasnet5large": Published("PNASNet-5 large", 82.9, _SLIM, None, 331),
    "regnetx_16gf": Published("RegNetX-16GF", 80.0, _PYCLS),
    "regnety_3_2gf": Published("RegNetY-3.2GF", 79.0, _PYCLS),
    "regnety_12gf": Published("RegNetY-12GF", 80.3, _PYCLS),
    "resnet50": Published("ResNet-50 v1.5", 76.16, _TORCHVISION),
    "resnet101": Published("ResNet-101 v1.5", 77.40, _TORCHVISION),
    "resnet152": Published("ResNet-152 v1.5", 78.33, _TORCHVISION),
    "resnext101_32x8d": Published("ResNeXt-101 32x8d", 79.31, _TORCHVISION),
    "shufflenetv1_100_g3": Published("ShuffleNetV1-1.0 g3", 67.8, _MEGVII),
    "shufflenetv1_100_g8": Published("ShuffleNetV1-1.0 g8", 68.0, _MEGVII),
    "shufflenetv2_050": Published("ShuffleNetV2-0.5", 61.1, _MEGVII),
    "shufflenetv2_100": Published("ShuffleNetV2-1.0", 69.4, _MEGVII),
    "shufflenetv2_150": Published("ShuffleNetV2-1.5", 72.6, _MEGVII),
    "shufflenetv2_200": Published("ShuffleNetV2-2.0", 75.0, _MEGVII),
    "vgg19_bn": Published("VGG-19", 74.23, _TORCHVISION),
    "xception": Published("Xception", 79.0, _EFFICIENTNET, None, 299),
}

# RepVGG beside nets of about its accuracy or less, which the paper says it is faster than.
PAIRS = [
    ("repvgg_a0", "resnet18"),
    ("repvgg_a1", "resnet34"),
    ("repvgg_a2", "resnet50_v1"),
    ("repvgg_a2", "efficientnet_b0"),
    ("repvgg_b1g4", "resnet101_v1"),
    ("repvgg_b1g2", "resnet152_v1"),
    ("repvgg_b1", "regnetx_3_2gf"),
    ("repvgg_b2", "vgg16_bn"),
    ("repvgg_b3", "regnetx_12gf"),
    ("repvgg_b3g4", "efficientnet_b3"),
]


def published_at(name: str, image_size: int) -> Published | None:
    """Returns the published figures of a net if they are of images of this size."""
    published = PUBLISHED.get(name)
    return published if published and published.image_size == image_size else None


def published_size(name: str) -> int:
    """Returns the side in pixels of the images that a net was measured with; 224 if unknown."""
    return PUBLISHED[name].image_size if name in PUBLISHED else 224
