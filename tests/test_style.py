"""The rules of style and language hold in the code; see tests/support/style.py."""

import pytest

from tests.support.style import RULES, findings


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_style(rule):
    assert findings(rule) == []
