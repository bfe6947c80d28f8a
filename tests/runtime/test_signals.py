"""Signals and deadlines stop a run once, and a second interrupt quits."""

import signal
import time

import pytest

from repvgg_jax.errors import Stopped
from repvgg_jax.runtime.signals import Stopping
from tests.support.commands import python


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_quits():
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT"):
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # and the former handler is back
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_after_another_signal_does_not_quit():
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGTERM"):
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so():
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGTERM)
            stopping.check()
    finally:
        signal.signal(signal.SIGTERM, former)


def test_what_comes_before_the_first_step_is_not_kept_in_reserve(monkeypatch):
    # A slow start, a first step that compiles, steps of 3 and 11 s; 10 s are kept to save in.
    clock = iter((0.0, 60.0, 74.0, 77.0, 88.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stopping = Stopping(100.0)
    for _ in range(3):
        stopping.check()
    with pytest.raises(Stopped, match="the deadline of 100 s"):
        stopping.check()


INTERRUPTED = """
import hashlib, os, signal, threading, time
from repvgg_jax.runtime.signals import Stopping, leave_at_interrupt

def interrupt():
    for _ in range(2):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as main.py does
leave_at_interrupt(lambda: "interrupted; rerun")
with Stopping():
    threading.Thread(target=interrupt).start()
    # As a compilation: minutes in which Python runs no handler.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


LEFT = """
import os
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
"""


@pytest.mark.system
def test_a_second_interrupt_ends_the_process_with_one_line_even_while_it_compiles():
    lines = python("-c", INTERRUPTED, code=130).split("\n")
    assert lines[1].startswith("stopping after the current step; Ctrl-C again ends the run at once")
    assert lines[3:] == ["interrupted; rerun", ""]


@pytest.mark.system
def test_interrupts_end_the_process_even_if_the_reader_of_stderr_has_left():
    assert python("-c", LEFT + INTERRUPTED, code=130, timeout=60) == ""
