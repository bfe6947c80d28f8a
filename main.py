"""python main.py --config configs/b1.py [--workdir runs/b1] [--mode train | eval | fuse]

Any field of configs/default.py can be given: --config.train.epochs=3
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from repvgg_jax.config import unknown_field
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.modes import MODES

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", help_string="a file of configs/, or your own")
MODE = flags.DEFINE_enum("mode", "train", MODES, "what to do")
WORKDIR = flags.DEFINE_string("workdir", None, "of the run; runs/<name of the config> by default")


def parse_flags(argv: list[str]) -> list[str]:
    """Absl's parsing, with one line and exit code 2 for whatever is wrong with the command line."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except AttributeError:  # an override of a field that the config doesn't have
        overrides = [arg.lstrip("-")[7:] for arg in argv if arg.lstrip("-").startswith("config.")]
        message = unknown_field(CONFIG.value, overrides)
    except OSError as error:
        message = f"--config={error.filename}: no such file; configs/ holds those that come along"
    sys.exit(f"error: {message}")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise UsageError(
                f"{argv[1]!r} is no flag; write --config FILE and --config.field=value"
            )
        if FLAGS["config"].value is None and WORKDIR.value is None:
            raise UsageError("--config says what to run, or --workdir which run to go on with")
        name = (
            WORKDIR.value or f"runs/{Path(config_flags.get_config_filename(FLAGS['config'])).stem}"
        )
        MODES[MODE.value](CONFIG.value, Path(name))
    except RunError as error:
        logging.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
