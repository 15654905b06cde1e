"""data/download.sh against a file server of our own, and with the released Beauty data where they are there."""

import hashlib
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import BEAUTY, ROOT

FILES = {name: bytes(range(256)) * 400 + name.encode() for name in ("one/a.npy", "one/b.txt", "two/a.npy")}
TOOLS = ["bash", "cat", "cut", "dirname", "mkdir", "mv", "rm", "sed", "sort", "tr"]


class Server(ThreadingHTTPServer):
    """Serves `files`. Notes the requests; breaks off after `cut` bytes; knows ranges or not."""

    def __init__(self):
        self.files, self.requests, self.cut, self.ranges = dict(FILES), [], None, True
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range") if self.server.ranges else None
        name = self.path.lstrip("/")
        self.server.requests.append((name, wanted))
        body = self.server.files.get(name)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if body is None or start >= len(body):
            self.send_error(416 if body else 404)
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def download(tmp_path):
    """Runs the script; `data` under tmp_path is where it writes."""
    checksums = tmp_path / "checksums.sha256"
    checksums.write_text("".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in FILES.items()))

    def run(*arguments, server=None, tools=None, **environment):
        environment = dict(os.environ, DATA_PATH=tmp_path / "data", CHECKSUMS=checksums, BASE_URL="") | environment
        if server:
            environment["BASE_URL"] = f"http://127.0.0.1:{server.server_port}"
        if tools:
            bin_folder = tmp_path / "bin"
            bin_folder.mkdir(exist_ok=True)
            for tool in [*TOOLS, *tools]:
                if not (bin_folder / tool).exists():
                    (bin_folder / tool).symlink_to(shutil.which(tool))
            environment["PATH"] = str(bin_folder)
        command = [shutil.which("bash"), ROOT / "data/download.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    return run


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of(*datasets):
    return {name: body for name, body in FILES.items() if name.split("/")[0] in datasets}


def need(tools):
    absent = [tool for tool in tools if not shutil.which(tool)]
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed")


@pytest.mark.parametrize("tools", [("curl", "sha256sum"), ("wget", "shasum")], ids="-".join)
def test_everything_is_fetched_once(tmp_path, server, download, tools):
    need(tools)
    result = download("one", server=server, tools=tools)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "data") == of("one")
    result = download("two", "one", server=server, tools=tools)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "data") == FILES
    assert sorted(server.requests) == sorted((name, None) for name in FILES)


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_a_download_that_was_cut_off_is_resumed(tmp_path, server, download, tool):
    need([tool])
    folder, body = tmp_path / "data/two", FILES["two/a.npy"]
    folder.mkdir(parents=True)
    if tool == "curl":  # wget would try again by itself
        server.cut = 1000
        result = download("two", server=server, tools=[tool, "sha256sum"])
        assert result.returncode == 1
        assert "two/a.npy: download failed" in result.stderr
        assert contents(folder) == {"a.npy.partial": body[:1000]}
        server.cut = None
    else:
        (folder / "a.npy.partial").write_bytes(body[:1000])
    result = download("two", server=server, tools=[tool, "sha256sum"])
    assert result.returncode == 0, result.stderr
    assert server.requests[-1] == ("two/a.npy", "bytes=1000-")
    assert contents(tmp_path / "data") == of("two")


@pytest.mark.parametrize(
    ("partial", "ranges"),
    [(FILES["two/a.npy"] * 2, True), (b"of another release", True), (FILES["two/a.npy"][:1000], False)],
    ids=["longer than the file", "another file", "server knows no ranges"],
)
def test_what_cannot_be_resumed_is_fetched_anew(tmp_path, server, download, partial, ranges):
    need(["curl"])
    server.ranges, folder = ranges, tmp_path / "data/two"
    folder.mkdir(parents=True)
    (folder / "a.npy.partial").write_bytes(partial)
    result = download("two", server=server)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "data") == of("two")


def test_a_whole_partial_needs_no_request(tmp_path, server, download):
    """As when the script was killed between the last byte and the rename."""
    folder = tmp_path / "data/two"
    folder.mkdir(parents=True)
    (folder / "a.npy.partial").write_bytes(FILES["two/a.npy"])
    assert download("two", server=server).returncode == 0
    assert contents(tmp_path / "data") == of("two")
    assert server.requests == []


@pytest.mark.parametrize("via", ["server", "--from"])
def test_a_wrong_hash_names_file_expected_and_found_and_leaves_nothing(tmp_path, server, download, via):
    wrong = FILES["two/a.npy"][:-1] + b"!"
    server.files["two/a.npy"] = wrong
    (tmp_path / "local/two").mkdir(parents=True)
    (tmp_path / "local/two/a.npy").write_bytes(wrong)
    result = download("two", *(["--from", tmp_path / "local"] if via == "--from" else []), server=server)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    for part in ("two/a.npy", hashlib.sha256(FILES["two/a.npy"]).hexdigest(), hashlib.sha256(wrong).hexdigest()):
        assert part in result.stderr
    assert result.stderr.count("\n") == 1
    assert contents(tmp_path / "data") == {}


def test_another_file_under_the_final_name_is_not_overwritten(tmp_path, server, download):
    (tmp_path / "data/two").mkdir(parents=True)
    (tmp_path / "data/two/a.npy").write_bytes(b"mine")
    result = download("two", server=server)
    assert result.returncode == 1
    assert "data/two/a.npy: expected SHA-256" in result.stderr
    assert hashlib.sha256(b"mine").hexdigest() in result.stderr
    assert contents(tmp_path / "data") == {"two/a.npy": b"mine"}
    assert server.requests == []


def test_from_takes_a_folder_of_data_sets_or_a_data_set_itself(tmp_path, download):
    for name, body in FILES.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(body)
    assert download("--from", tmp_path / "local", "one", "two").returncode == 0
    assert contents(tmp_path / "data") == FILES
    itself = download("--from", tmp_path / "local/one", "one", DATA_PATH=tmp_path / "other")
    assert itself.returncode == 0, itself.stderr
    assert contents(tmp_path / "other") == of("one")
    absent = download("two", "--from", tmp_path / "other", DATA_PATH=tmp_path / "third")
    assert absent.returncode == 1
    assert absent.stderr == (
        f"error: {tmp_path}/other/a.npy: no such file; --from takes a folder of data sets, or a data set itself\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data set named; usage: bash data/download.sh [--from DIR] DATASET...   (data sets: one two)"),
        (["one", "three"], "unknown data set 'three'; the known ones are one two"),
        (["--form", "x", "one"], "unknown option --form; usage:"),
        (["one", "--from", "/nowhere/at/all"], "--from /nowhere/at/all: no such folder"),
        (["one", "--from"], "--from (nothing): no such folder"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(tmp_path, server, download, arguments, message):
    result = download(*arguments, server=server)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()
    assert server.requests == []


def test_a_server_that_lacks_a_file_is_named(server, download):
    del server.files["two/a.npy"]
    result = download("two", server=server)
    assert result.returncode == 1
    assert f"http://127.0.0.1:{server.server_port}/two/a.npy: download failed" in result.stderr


@pytest.mark.skipif(not BEAUTY.is_dir(), reason=f"no Beauty data at {BEAUTY}: set BEAUTY to their folder")
def test_the_released_beauty_data_pass_the_shipped_checksums(tmp_path, download):
    shipped = ROOT / "data/checksums.sha256"
    result = download("--from", BEAUTY, "beauty", CHECKSUMS=shipped)
    assert result.returncode == 0, result.stderr
    names = [line.split()[1] for line in shipped.read_text().splitlines()]
    assert sorted(contents(tmp_path / "data")) == sorted(name for name in names if name.startswith("beauty/"))
    assert [sum(name.startswith(dataset) for name in names) for dataset in ("beauty/", "games/")] == [7, 7]
