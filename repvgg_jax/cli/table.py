"""A table on standard output, printed row by row."""

import sys
from collections.abc import Mapping

from repvgg_jax.runtime.output import output_is_open


class Table:
    """A table on standard output, whose rows are printed as they are added.

    The header is printed with the first row, below any warnings before it. Characters that standard
    output cannot encode, such as the bytes of a file name that is not UTF-8, are escaped.

    Args:
      columns: title of each column -> the format of its cells, such as "<20".

    Attributes:
      is_open: False once the reader of a pipe has left, as `head` does. Later rows are dropped.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.is_open = output_is_open()
        self._line = "  ".join(f"{{:{form}}}" for form in columns.values()).format
        self._pending = [self._line(*columns)]

    def add(self, *cells: str) -> None:
        """Prints a row.

        Raises:
          RunError: if standard output cannot be written, for example to a full disk.
        """
        if not self.is_open:
            return
        text = "\n".join([*self._pending, self._line(*cells)])
        self._pending = []
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        self.is_open = output_is_open()
