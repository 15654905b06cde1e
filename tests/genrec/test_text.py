"""Text as Windows, spreadsheets, downloads and accidents leave it, for every reader of users' files."""

import gzip
import json
import shutil

import pytest

from conftest import ROOT
from genrec.data.catalogue import Catalogue, read_stop_list
from genrec.data.splits import load_splits
from genrec.identifiers.item_texts import read_texts
from genrec.raw.raw_files import inspect
from genrec.raw.records import read_records
from genrec.runtime import text
from genrec.runtime.errors import UserError
from genrec.runtime.text import read_blocks, read_bytes, read_json, read_lines, read_text
from specgr.configuration.config import load_config

TOY = ROOT / "data/toy"
CONFIG = ROOT / "code/specgr/configs/toy.yaml"
RAW = "".join(f"u{k % 3},i{k},5.0,{10**9 + k}\n" for k in range(40))


def splits(path):
    shutil.copytree(TOY, path.parent / "toy", ignore=shutil.ignore_patterns("*.npy"), dirs_exist_ok=True)
    shutil.copy(path, path.parent / "toy/sequential_test.txt")
    return load_splits(path.parent / "toy")


def records(path):
    work = path.parent / "work"
    work.mkdir(exist_ok=True)
    return len(read_records([inspect(path, None, {})], None, True, work).records)


READERS = {  # what reads -> (how, a text of it)
    "splits": (splits, (TOY / "sequential_test.txt").read_text()),
    "stop list": (lambda path: read_stop_list(path, Catalogue({i: (str(i),) for i in range(9)})), "3\n5\n8\n"),
    "index": (Catalogue.load, json.dumps({i: [f"<a_{i}>", "<b>"] for i in range(9)}, indent=1)),
    "configuration": (load_config, CONFIG.read_text()),
    "item texts": (lambda path: read_texts(path, ["B1", "B2"]), "asin,title\nB1,Soap\nB2,Comb\n"),
    "reviews": (records, f"user,item,rating,time\n{RAW}"),
}
NAMES = {"item texts": "items.csv"}
FORMS = {  # how a text is left -> its bytes
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "Windows": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blank lines at the end": lambda text: f"{text}\n\n".encode(),
}
STREAMED = ("item texts", "reviews")  # files of any size, which may be gz


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READERS)
def test_the_same_is_read_however_lines_begin_and_end(name, form, tmp_path):
    how, content = READERS[name]
    path = tmp_path / NAMES.get(name, "file.txt")
    path.write_text(content)
    expected = how(path)
    path.write_bytes(FORMS[form](content))
    assert how(path) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", READERS)
def test_utf_16_is_named_with_what_to_do(name, encoding, tmp_path):
    how, content = READERS[name]
    path = tmp_path / NAMES.get(name, "file.txt")
    path.write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match=r": is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW"):
        how(path)


@pytest.mark.parametrize("name", STREAMED)
def test_what_follows_the_end_of_a_gz_is_left_out_with_a_warning(name, tmp_path, caplog, monkeypatch):
    how, content = READERS[name]
    path = tmp_path / NAMES.get(name, "file.txt")
    path.write_text(content)
    expected, half = how(path), len(content) // 2
    members = [gzip.compress(part.encode(), mtime=0) for part in (content[:half], content[half:])]
    for packed in (2, 1 << 18):  # bytes that are looked at at once
        monkeypatch.setattr(text, "_PACKED", packed)
        for after in (b"", bytes(512), b"rubbish"):
            caplog.clear()
            path.write_bytes(b"".join(members) + after)
            assert how(path) == expected
            warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
            assert warned == ([f"{path}: {len(after)} bytes after the end of the gz, which are no gz, are left out"]
                              if after else [])  # fmt: skip
        for cut in (5, 30, len(members[0]) + 4, len(b"".join(members)) - 1):
            path.write_bytes(b"".join(members)[:cut])
            with pytest.raises(UserError, match=r": truncated gz: it ends before its text does; fetch it again"):
                how(path)
    path.write_bytes(members[0][:20] + bytes(20) + members[0][40:])
    with pytest.raises(UserError, match=r": damaged gz \(Error -3"):
        how(path)


def test_a_gz_is_read_in_blocks_of_whole_lines_however_well_it_is_packed(tmp_path, monkeypatch):
    path, content = tmp_path / "raw.gz", b"".join(b"%d\n" % (k % 7) for k in range(10_000))
    path.write_bytes(gzip.compress(content))
    monkeypatch.setattr(text, "BLOCK", 1000)
    positions = []
    blocks = list(read_blocks(path, positions.append))
    assert b"".join(blocks) == content
    assert all(block.endswith(b"\n") and len(block) <= 1001 for block in blocks)
    assert positions[-1] == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (100_000 * "[", r": nested too deep to be read; fetch or write it again"),
        (100_000 * '{"a":', r": nested too deep to be read"),
        ('{"a": ' + 5000 * "9" + "}", r": not valid JSON, perhaps truncated \(Exceeds the limit"),
        ('{"a": 1, "a": 2}', r": key 'a' stands twice; keep one"),
        ('{"a": 1', r": not valid JSON, perhaps truncated"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(content, message, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1


def test_yaml_nested_too_deep_is_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(100_000 * "[")
    with pytest.raises(UserError, match=r"config.yaml: nested too deep to be read"):
        load_config(path)


def test_what_is_no_file_is_named(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "absent", tmp_path, loop / "below", loop, tmp_path / ("x" * 300)):
        for read in (read_bytes, read_text, read_json):
            with pytest.raises(UserError, match=r": (no such file|cannot be read \(.*\)); check the path") as error:
                read(path)
            assert str(error.value).startswith(f"{path}: ")


def test_only_line_ends_end_a_line(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text('{"title": "a\u2028b\x0cc"}\n{"title": "d"}', newline="")
    assert list(read_lines(path)) == ['{"title": "a\u2028b\x0cc"}\n', '{"title": "d"}\n']


def test_a_token_may_hold_more_digits_than_an_integer(tmp_path):
    tokens = [f"<a_{digits}>" for digits in ("0", "2", "010", 5000 * "9", "1" + 5000 * "0")]
    catalogue = Catalogue({item: (token,) for item, token in enumerate(reversed(tokens))})
    assert catalogue.tokens == tokens


def test_a_stop_list_of_pandas_floats_is_read(tmp_path):
    path = tmp_path / "stopped.txt"
    path.write_text("3.0\n5\n")
    assert read_stop_list(path, Catalogue({i: (str(i),) for i in range(9)})) == {3, 5}
