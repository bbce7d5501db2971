"""The record of measurements: what is added, where, and what a line says of its origin."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import record
from recipe.console import UserError
from recipe.provenance import describe_machine

RESULTS = record.RESULTS
MACHINE_PATHS = re.compile(r"/work/|/home/|/root/|/Users/|/tmp/")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Neither the checkout's results nor its runs are written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return tmp_path


def test_only_published_rows_go_to_the_results(elsewhere):
    record.add_rows("speed", [{"ms": 1.5}, {"ms": 2}], ["numpy", "no-such-package"], publish=False)
    assert not record.RESULTS.exists()
    record.add_rows("speed", [{"ms": 3, "command": "by hand"}], [], publish=True)
    record.add_rows("speed", [{"ms": 4}], [], publish=True)

    rows = record.read_rows("speed", record.BENCH)
    assert [row["ms"] for row in rows] == [1.5, 2]
    assert rows[0].keys() == {"command", "commit", "date", "versions", "machine", "ms"}
    assert rows[0]["versions"].keys() == {"python", "numpy"}
    assert record.machines(record.BENCH) == {rows[0]["machine"]: describe_machine()}
    assert [row["ms"] for row in record.read_rows("speed")] == [3, 4]
    assert [row["ms"] for row in record.read_rows("speed", command="by hand")] == [3]
    assert [row["ms"] for row in record.newest("speed", "machine")] == [4]


def test_another_machine_gets_another_key(elsewhere, monkeypatch):
    machine = {"processor": "Intel(R) Xeon(R) Processor", "cores": 2, "instructions": "AMX", "gpu": None}
    for changes in ({}, {"cores": 4}, {"gpu": "H200"}, {}):
        monkeypatch.setattr(record, "describe_machine", lambda c=changes: machine | c)
        record.add_rows("speed", [{}], [], publish=True)
    keys = [row["machine"] for row in record.read_rows("speed")]
    assert keys == ["processor-amx-2", "processor-amx-4", "processor-amx-2-2", "processor-amx-2"]


def test_a_damaged_record_is_named_and_kept(elsewhere):
    path, machines = record.add_rows("speed", [{}], [], publish=True), record.BENCH / record.MACHINES
    content = path.read_text()
    for line in ("{", "[]", "1"):
        path.write_text(content + line + "\n")
        with pytest.raises(UserError, match=r"speed\.jsonl, line 2"):
            record.read_rows("speed")
    machines.parent.mkdir(parents=True)
    for damaged in ("damaged", "[]", '{"a": 1}'):
        machines.write_text(damaged)
        with pytest.raises(UserError, match=r"machines\.json"):
            record.add_rows("test", [], (), publish=False)
        assert machines.read_text() == damaged


def test_a_record_that_cannot_take_the_rows_is_found_before_the_work(elsewhere):
    with pytest.raises(UserError, match="--publish needs MNIST"):
        record.PublishOptions(publish=True).check_record("speed", "digits")
    (record.BENCH / "speed.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*speed\.jsonl"):
        record.PublishOptions().check_record("speed", "digits")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_row_says_where_it_comes_from(path: Path):
    known = record.machines()
    rows = record.read_rows(path.stem)
    assert rows and not MACHINE_PATHS.search(path.read_text())
    for row in rows:
        assert row["command"].startswith("python -m "), row
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", row["commit"]), row
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]), row
        assert row["machine"] in known and "python" in row["versions"], row
        assert row.get("dataset", "mnist") == "mnist", row


def test_machines_are_described_as_a_measurement_would():
    known = record.machines().values()
    assert all(machine.keys() == describe_machine().keys() for machine in known)
    assert len({json.dumps(machine) for machine in known}) == len(known)
