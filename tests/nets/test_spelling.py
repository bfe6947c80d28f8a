"""Misspelled names, and names of other libraries, lead to the model that is meant."""

import pytest

import repvgg_jax as rj
from repvgg_jax.errors import nearest
from repvgg_jax.nets import NETS
from repvgg_jax.nets._spelling import spelling


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("resnext50", "resnext50_32x4d"),
        ("resnext101", "resnext101_32x4d or resnext101_32x8d or resnext101_64x4d"),
        ("ResNet-50", "resnet50"),
        ("wide_resnet50", "wide_resnet50_2"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("mobilenet", "mobilenetv1_100 or mobilenetv2_100 or mobilenetv1_025"),
        ("shufflenet_v2_x1_0", "shufflenetv2_100"),
        ("shufflenet_v2_x0_5", "shufflenetv2_050"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("vgg16bn", "vgg16_bn"),
        ("densenet_121", "densenet121"),
        ("regnet_y_400mf", "regnety_400mf"),
        ("RegNetX-3.2GF", "regnetx_3_2gf"),
        ("regnetx_160", "regnetx_16gf"),
        ("InceptionResNetV2", "inception_resnet_v2"),
        ("nasnet", "nasnetalarge or nasnetamobile"),
        ("RepVGG-B1g4", "repvgg_b1g4"),
    ],
)
def test_the_nearest_names_are_suggested(name, suggested):
    with pytest.raises(rj.UsageError, match=rf": did you mean {suggested}\?$"):
        rj.create(name)


def test_names_without_a_similar_one_are_answered_by_a_list():
    for name in ("", "-", "alexnet_tpu_xyz", None):
        with pytest.raises(rj.UsageError, match=r"choose from amoebaneta_f190, .* in all\)$"):
            rj.create(name)


def test_no_two_models_have_one_spelling():
    assert len(set(map(spelling, NETS))) == len(NETS)


@pytest.mark.medium
def test_names_of_torchvision_and_timm_lead_to_the_same_architecture(torchvision, timm):
    from experiments.reference.torch_models import PACKAGES, name_in

    pairs = [(name_in(name, package), name) for package in PACKAGES for name in NETS]
    there = {theirs: name for theirs, name in pairs if theirs}
    assert len(there) > 80
    for theirs, name in there.items():
        assert nearest(theirs, NETS, spelling)[0] == name
