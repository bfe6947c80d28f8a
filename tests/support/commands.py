"""Commands run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}


def python(*arguments, code=0, prefix=(), **options):
    """Returns the stdout and stderr of a Python command, in one string."""
    done = _finished(*arguments, code=code, prefix=prefix, **options)
    return done.stdout + done.stderr


def main(*arguments, code=0, devices=1):
    """Returns the output of main.py, or its errors if it should fail."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | ONE_DEVICE | {"XLA_FLAGS": flags}
    done = _finished("main.py", *arguments, code=code, env=environment)
    return done.stdout if code == 0 else done.stderr


def _finished(*arguments, code, prefix=(), **options):
    options = {"env": os.environ | ONE_DEVICE, "timeout": 300} | options
    done = subprocess.run(
        [*prefix, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
