"""Paths as users write them, and JSON files as killed processes leave them."""

import json
import os
from pathlib import Path

import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.runtime import files
from repvgg_jax.runtime.files import append_row, local_path, read_json, write_json
from tests.support.messages import one_line

DAMAGED = [b"", b" \n", b'{"a"', b"\0\0\0\0", b"[1]", b"5", b'{"a": "\xc3']


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert local_path("~/runs/x") == local_path(Path("~/runs/x")) == tmp_path / "runs/x"
    assert local_path("~") == tmp_path
    for path in ("runs/x~", "a/~/b", "runs/12:30/x", "C:x", "/x://y"):
        assert local_path(path) == Path(path)
    with pytest.raises(UsageError) as error:
        local_path("~no_such_user/x", "--workdir")
    one_line(error, "--workdir=~no_such_user/x", "home folder")


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("gs://bucket/r", "mount the bucket"),
        ("s3://bucket/r", "mount the bucket"),
        ("abfss://container@account/r", "mount the bucket"),
        ("GS://bucket", "gcsfuse"),
        (Path("gs://bucket/r"), "mount the bucket"),
        ("file:///data/a%20b", "give the path itself: /data/a b"),
        (Path("file:///data/x"), "give the path itself: /data/x"),
        ("https://host/a.pth", "download it"),
    ],
    ids=str,
)
def test_a_url_is_refused_with_its_remedy(url, remedy):
    with pytest.raises(UsageError) as error:
        local_path(url, "--workdir")
    one_line(error, f"--workdir={url} is a URL", remedy)


def test_an_empty_path_is_refused():
    with pytest.raises(UsageError, match="--workdir is empty"):
        local_path("", "--workdir")


@pytest.mark.parametrize("content", [*DAMAGED, None], ids=str)
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_json(path, "write it again")
    assert one_line(error, f"{path} cannot be read (").endswith("; write it again")


def test_what_was_written_is_read(tmp_path):
    for tree in ({"a": [1, None, "é"]}, [{"a": 1}]):
        write_json(tmp_path / "x.json", tree)
        assert read_json(tmp_path / "x.json", "", type(tree)) == tree
    tree = {"a": [[1, -2.5e-07], [None, True]], "b": ["[\n1,  2]", "c"]}
    write_json(tmp_path / "x.json", tree)
    assert read_json(tmp_path / "x.json", "") == tree
    assert "    [1, -2.5e-07],\n    [null, true]\n" in (tmp_path / "x.json").read_text()


def test_write_json_leaves_the_old_file_where_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"top1": {"fused": 0.5}})
    old = path.read_text()
    assert json.loads(old) == {"top1": {"fused": 0.5}}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})

    def disk_full(_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"loss": 1.0})
    assert path.read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_row_is_appended_after_an_incomplete_one(tmp_path):
    path = tmp_path / "new" / "bench.jsonl"
    append_row(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    append_row(path, {"a": 3})
    lines = path.read_text().splitlines()
    assert [json.loads(lines[index]) for index in (0, 2)] == [{"a": 1}, {"a": 3}]
