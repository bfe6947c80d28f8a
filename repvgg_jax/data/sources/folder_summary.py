"""The properties of class folders that a recipe depends on: `summarize_folder`."""

from collections import Counter
from typing import NamedTuple

from repvgg_jax.data.decode.pillow import image_size
from repvgg_jax.data.sources.folder import list_split
from repvgg_jax.data.sources.folder_layout import find_roots
from repvgg_jax.errors import UsageError

_SAMPLE = 200  # images whose size is read


class FolderSummary(NamedTuple):
    """The properties of class folders that a recipe depends on.

    Attributes:
      root: folder that contains the class folders of the training images.
      class_names: the sorted names of the class folders.
      train_sizes: number of training images of each class.
      test_sizes: number of evaluation images of each class.
      side: median over a sample of training images of the shorter side, in pixels.
      only_one: True if there is no separate evaluation folder.
    """

    root: str
    class_names: tuple[str, ...]
    train_sizes: tuple[int, ...]
    test_sizes: tuple[int, ...]
    side: int
    only_one: bool


def summarize_folder(data_dir: str | None, holdout: float) -> FolderSummary:
    """Returns the classes, numbers and sizes of the images that `load_folder` would load.

    Args:
      data_dir: the folder.
      holdout: share of the images that is held out if there is no evaluation folder.

    Raises:
      UsageError: as `load_folder`, and if no image of a sample can be opened.
    """
    roots = find_roots(data_dir)
    share = holdout if roots.only_one else None
    train, test = (list_split(roots, split, share, Counter()) for split in ("train", "test"))
    sample = train.paths[:: -(-len(train.paths) // _SAMPLE)]
    sides = sorted(min(size) for path in sample if (size := image_size(path)))
    if not sides:
        raise UsageError(f"{train.root}: none of {len(sample)} images can be opened")
    return FolderSummary(
        root=train.root,
        class_names=train.class_names,
        train_sizes=train.class_sizes(),
        test_sizes=test.class_sizes(),
        side=sides[len(sides) // 2],
        only_one=roots.only_one,
    )
