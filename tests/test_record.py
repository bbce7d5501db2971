"""The record of measurements: what is added, where, and what a line says of its origin."""

import json
import subprocess
import sys

import pytest

from recipe import provenance, record
from recipe.console import UserError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Neither the checkout's results nor its runs are written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")


def test_only_published_rows_go_to_the_results(tmp_path):
    path = record.add_rows("speed", [{"ms": 1.5}, {"ms": 2}], ["numpy", "no-such-package"], publish=False)
    assert path.resolve() == tmp_path / "runs" / "bench" / "speed.jsonl"
    assert not record.RESULTS.exists()
    record.add_rows("speed", [{"ms": 3, "command": "by hand"}], [], publish=True)
    record.add_rows("speed", [{"ms": 4}], [], publish=True)

    rows = record.read_rows("speed", record.BENCH)
    assert [row["ms"] for row in rows] == [1.5, 2]
    assert rows[0].keys() == {"command", "commit", "date", "versions", "machine", "ms"}
    assert rows[0]["versions"].keys() == {"python", "numpy"}
    machines = json.loads((record.BENCH / record.MACHINES).read_text())
    assert machines == {rows[0]["machine"]: provenance.describe_machine()}
    assert [row["ms"] for row in record.read_rows("speed", record.RESULTS)] == [3, 4]
    assert [row["ms"] for row in record.read_rows("speed", record.RESULTS, command="by hand")] == [3]
    assert record.read_rows("nothing", record.RESULTS) == []


def test_another_machine_gets_another_key(monkeypatch):
    def machine(cores):
        return {"processor": "Intel(R) Xeon(R) Processor", "cores": cores, "instructions": "AMX", "gpu": None}

    keys = []
    for cores, gpu in ((2, None), (4, None), (2, "H200"), (2, None)):
        monkeypatch.setattr(record, "describe_machine", lambda c=cores, g=gpu: machine(c) | {"gpu": g})
        record.add_rows("speed", [{}], [], publish=True)
        keys.append(record.read_rows("speed", record.RESULTS)[-1]["machine"])
    assert keys == ["processor-amx-2", "processor-amx-4", "processor-amx-2-2", "processor-amx-2"]
    assert len(json.loads((record.RESULTS / record.MACHINES).read_text())) == 3


def test_results_are_no_change_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    for name in ("recipe/record.py", "results/speed.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "recipe" / "record.py"))
    assert provenance.git_commit() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    commit = provenance.git_commit()
    assert commit is not None and len(commit) == 40
    (tmp_path / "results" / "speed.jsonl").write_text("{} {}")
    assert provenance.git_commit() == commit
    (tmp_path / "recipe" / "record.py").write_text("changed")
    assert provenance.git_commit() == commit + "+"


def test_a_command_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    arguments = ["--out", str(tmp_path / "runs" / "a b"), "--data-dir", "/secret/mnist", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tool", *arguments])
    command = provenance.command()
    assert command.startswith("python ")
    assert command.endswith(" --out 'runs/a b' --data-dir mnist --epochs 2")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert provenance.command().startswith("python tool --out")


@pytest.mark.parametrize("line", ["{", "[]", "1"])
def test_a_damaged_line_is_named(line):
    path = record.add_rows("speed", [{}], [], publish=True)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"speed\.jsonl, line 2, is no JSON object; delete the line"):
        record.read_rows("speed", record.RESULTS)


def test_a_record_that_cannot_be_written_is_named():
    (record.RESULTS / "speed.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*speed\.jsonl: Is a directory"):
        record.add_rows("speed", [{}], [], publish=True)


@pytest.mark.parametrize("content", ["damaged", "[]", '{"a": 1}', '{"a": "b"}'])
def test_a_damaged_list_of_machines_is_named(content):
    path = record.BENCH / record.MACHINES
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match=r"machines.json is no list of machines in JSON; delete it"):
        record.add_rows("test", [], (), publish=False)
    assert path.read_text() == content
