"""Assertions about error messages."""

from __future__ import annotations

import os


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert os.fspath(part) in message
    return message
