"""Parameter counts of RepVGG-B0 with each block."""

import pytest

import repvgg_jax as rj
from repvgg_jax.bench.counting import count_parameters
from repvgg_jax.nets import abstract

# Exact counts of RepVGG-B0 with each block, computed by hand from the papers. The last three are
# counts of this implementation, to detect changes.
B0_PARAMETERS = {
    ("plain", ()): 14345512,
    ("repvgg", (("branches", ("kxk", "identity")),)): 14354856,
    ("repvgg", (("branches", ("kxk", "1x1")),)): 15808616,
    ("repvgg", ()): 15817960,
    ("identity_without_bn", ()): 15808616,
    ("post_addition_bn", ()): 15795688,
    ("qarepvgg", ()): 15808616,
    ("dirac", ()): 14358440,
    ("trivial", ()): 14345512,
    ("acb", ()): 23072424,
    ("dbb", ()): 31526903,
    ("csla", ()): 15813288,
    ("expandnet", ()): 225991025,
    ("doconv", ()): 14765659,
    ("orepa", ()): 44928649,
}


@pytest.mark.parametrize(("block", "options"), B0_PARAMETERS)
def test_parameters_of_b0_are_exact(block, options):
    net = rj.create("repvgg_b0", block=block, **dict(options))
    shapes = abstract(net)
    assert count_parameters(shapes) == B0_PARAMETERS[block, options]
