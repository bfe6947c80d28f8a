"""Tests of the accuracy of each class and of the confusion matrix."""

import numpy as np
import pytest

from repvgg_jax.training import confusion

# Classes a, b, c and an output without a name; c has no images.
MATRIX = np.array([[8, 2, 0, 0], [1, 5, 3, 1], [0, 0, 0, 0], [0, 0, 0, 4]])


def test_fields_of_the_report():
    metrics = {"train_form": {"top1": 0.7, "confusion": MATRIX}}
    fields = confusion.confusion_fields(metrics)
    assert fields["class_accuracy"] == {"train_form": [0.8, 0.5, None, 1.0]}
    assert fields["confusion"] == {"train_form": MATRIX.tolist()}
    assert confusion.confusion_fields({"train_form": {"top1": 0.7}}) == {}


def test_table_lists_the_lowest_classes_and_the_most_frequent_confusions():
    names = ["a", "b" * 40, "c"]
    lines = confusion.confusion_table(MATRIX, names).splitlines()
    long = "b" * 21 + "..."
    assert lines[0].split("  ")[0] == "lowest of 3 classes"
    assert lines[1].split() == [long, "50.00%", "10", "c", "(3),", "a", "(1),", "3", "(1)"]
    assert lines[2].split() == ["a", "80.00%", "10", long, "(2)"]
    assert lines[3] == (
        f"most frequent: {long} as c (3), a as {long} (2), {long} as a (1), {long} as 3 (1)"
    )
    right = confusion.confusion_table(np.diag([3, 0, 2]), names)
    assert right == "every image is classified correctly"


@pytest.mark.parametrize("classes", [4, 51])
def test_picture_of_a_legible_number_of_classes(classes, tmp_path):
    matrix = np.zeros((classes, classes), int)
    matrix[:4, :4] = MATRIX
    confusion.draw_confusion(matrix, ["a", "b", "c"], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists() == (classes <= 50)
