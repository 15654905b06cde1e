"""What stage 4 has measured, and what becomes of it on a disk that lost some."""

import json

import pytest

from atspeed.benchmark.journal import Journal
from atspeed.benchmark.runner import Record
from genrec.runtime.errors import UserError

BATCHES = [[Record(request, "generate", width, [[3, 4]], 0.5, 2, None, 9, 0)] for width in (1, 3) for request in (0, 1)]


@pytest.fixture
def journal(tmp_path):
    journals = [Journal(tmp_path, process, Record, "width", "request") for process in (0, 1)]
    for number, batch in enumerate(BATCHES):
        journals[number % 2].keep(batch)
    return journals[0]


def test_records_of_all_processes_come_back_in_order(journal):
    assert journal.read() == [record for batch in BATCHES for record in batch]


def test_a_line_half_written_is_measured_again(journal):
    journal.path.write_bytes(journal.path.read_bytes()[:-9])
    journal.mend()
    assert journal.read() == [record for batch in (*BATCHES[:2], BATCHES[3]) for record in batch]


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b"\xff\xfe", b"[5]", b'[{"request": 1}]', b"{}}"])
def test_a_damaged_line_is_named(journal, damage):
    first, second = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(first + damage + b"\n")
    journal.mend()
    with pytest.raises(UserError, match=r"records-0\.jsonl: line 2 is damaged .*; remove the line"):
        journal.read()
    journal.path.write_bytes(first + second)
    assert len(journal.read()) == 4


def test_what_an_older_version_has_measured_has_no_scores(journal):
    older = [{name: value for name, value in vars(record).items() if name != "scores"} for record in BATCHES[0]]
    journal.path.write_text(json.dumps(older) + "\n")
    assert journal.read()[0].scores is None
