"""`--mode=train` on a run that exists already."""

import json
import logging
import shutil

import pytest

import repvgg_jax as rj
from repvgg_jax.cli import train as train_module
from repvgg_jax.cli.report import write_report
from repvgg_jax.cli.train import run_train
from repvgg_jax.errors import RunError
from repvgg_jax.training.history import read_history
from tests.support.runs import equal, tiny_config


@pytest.mark.medium
def test_a_torn_report_is_written_again(undisturbed, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(undisturbed[1], tmp_path / "run")
    (tmp_path / "run/report.json").write_text('{"model": "rep')
    saved = (tmp_path / "run/config.json").read_text()
    history = tmp_path / "run/history.jsonl"
    first, end = map(json.loads, history.read_text().splitlines())
    assert end["seconds"] > 0
    assert (first["step"], first["changed"]) == (0, {})
    first["environment"]["convolutions"] = "a library of another machine"
    first["environment"]["compiler_options"] = {"an_option": "of the steps"}
    history.write_text(f"{json.dumps(first)}\n{json.dumps(end | {'seconds': 1e6})}\n")
    config = tiny_config()
    config.data.workers = 1
    with caplog.at_level(logging.WARNING):
        run_train(config, tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["steps"] == 4
    assert report["examples_per_second"] is None
    assert "report.json cannot be read" in caplog.text
    assert (tmp_path / "run/config.json").read_text() == saved
    assert read_history(tmp_path / "run")[-1]["changed"] == {"data.workers": 1}
    assert report["wall_seconds"] == 1e6 + report["start_seconds"]
    end = json.loads(history.read_text().splitlines()[-1])
    assert (end["step"], end["seconds"]) == (4, round(report["wall_seconds"], 3))
    assert report["best"] == {"step": 4, "top1": report["top1"]["train_form"]}
    assert report["starts"] == 2
    assert report["environment"]["convolutions"] != first["environment"]["convolutions"]
    [earlier] = report["earlier_environments"]
    assert earlier == first["environment"] | {"from_step": 0}
    assert "convolutions a library of another machine before, " in caplog.text
    # This start compiled no steps.
    assert report["environment"]["compiler_options"] == {"an_option": "of the steps"}
    equal(rj.load("~/run")[1], undisturbed[0].eval_variables)

    table = capsys.readouterr().out
    written = (tmp_path / "run/report.json").stat().st_mtime_ns
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "repvgg_jax"):
        patch.setattr(train_module, "build", None)  # nothing is opened or written
        run_train(config, tmp_path / "run")
    assert caplog.messages[-1].endswith("run/config.json: data.workers=1 instead of 4")
    assert capsys.readouterr().out == table
    assert (tmp_path / "run/report.json").stat().st_mtime_ns == written
    (tmp_path / "run/report.json").unlink()
    (tmp_path / "run/report.json").mkdir()
    with pytest.raises(RunError, match=r"report\.json cannot be written .*; rerun the same"):
        write_report(tmp_path / "run", report)
