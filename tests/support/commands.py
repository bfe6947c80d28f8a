"""Commands run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def on_devices(count):
    """Returns the environment of a process with CPU devices, which compiles as the tests do."""
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags = [*kept, f"--xla_force_host_platform_device_count={count}"]
    return os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}


def python(*arguments, code=0, prefix=(), **options):
    """Returns the stdout and stderr of a Python command, in one string."""
    done = _finished(*arguments, code=code, prefix=prefix, **options)
    return done.stdout + done.stderr


def main(*arguments, code=0, devices=1):
    """Returns the output of main.py, or its errors if it should fail."""
    done = _finished("main.py", *arguments, code=code, env=on_devices(devices))
    return done.stdout if code == 0 else done.stderr


def _finished(*arguments, code, prefix=(), **options):
    options = {"env": on_devices(1), "timeout": 300} | options
    done = subprocess.run(
        [*prefix, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
