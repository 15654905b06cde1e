"""The service: a real server, real requests at once, and what becomes of those that cannot be answered."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pandas as pd
import pytest
from fastapi import HTTPException, Request

from atspeed import Recommender
from atspeed.recommend.served import ServedCatalogue
from atspeed.serve.gate import Gate, RefusedRequest, RequestLimits
from atspeed.serve.server import TOKEN, _check_admin
from conftest import environment, script
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import load_dataset

MANY = 24


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def service(folder, *flags, **variables):
    """A service on `folder`/target; (process, its address). It is ended by SIGTERM, as a container ends one."""
    port = str(free_port())
    own = {"TARGET_MODEL": str(folder / "target"), "PORT": port, "TITLES": str(folder / "titles.csv")}
    process = subprocess.Popen(
        ["bash", "script/serve.sh", *flags], env=environment(folder, **(own | variables)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            time.sleep(0.1)
            assert process.poll() is None, process.stdout.read()
            try:
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            except httpx2.TransportError:
                continue
        yield process, url
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory, save_random_target):
    folder = tmp_path_factory.mktemp("serve")
    save_random_target(folder)
    pd.DataFrame({"item": range(300), "title": [f"Item {i}" for i in range(300)]}).to_csv(
        folder / "titles.csv", index=False
    )
    return folder


@pytest.fixture(scope="module")
def served(world):
    with service(world) as (_, url):
        yield url


def ask(url, **request):
    return httpx2.post(f"{url}/recommend", json=request, timeout=60)


GOOD = [
    {"history": [3], "k": 5},
    {"history": [5, 7, 9], "k": 5, "exclude": [1, 2, 3]},
    {"history": [1, 2, 3, 4, 5, 6], "k": 3, "exclude_seen": True},
    {"history": [11, 11], "k": 5, "allow": [4, 5, 6, 7, 8, 200]},
    {"history": [40, 9999, 2], "k": 4, "on_unknown": "skip"},
]
BAD = {
    '{"history": [3, 9999], "k": 5}': "history: item 9999 is not in the catalogue; leave it out",
    '{"history": []}': "history: List should have at least 1 item",
    '{"history": [9999], "on_unknown": "skip"}': "history: holds no item of the catalogue",
    '{"history": ["B003"]}': "history: item 'B003' is not in the catalogue, which has item numbers",
    '{"history": [true]}': "history.0: is not an item",
    '{"history": [[3]]}': "history.0: is not an item",
    '{"history": [3], "k": 0}': "k: Input should be greater than or equal to 1",
    '{"history": [3], "k": "5"}': "k: Input should be a valid integer",
    '{"history": [3], "k": 101}': "k 101: is limited to 100",
    '{"history": [3], "allow": []}': "allow: holds no item that there is to recommend",
    '{"history": [3], "exclude": [9999]}': "exclude: item 9999 is not in the catalogue",
    '{"history": [3], "on_unknown": "ignore"}': "on_unknown: Input should be 'error' or 'skip'",
    '{"historie": [3]}': "history: Field required",
    '{"history": [3], "top": 5}': "top: Extra inputs are not permitted",
    "[3]": "Input should be an object",
    "history=3": "Invalid JSON",
    json.dumps({"history": [3] * 1001}): "history: has 1001 items; it is limited to 1000",
}


def expected(recommender, request):
    seen = request["history"] if request.get("exclude_seen") else []
    (found,) = recommender.recommend(
        [request["history"]], request["k"], exclude=[[*request.get("exclude", []), *seen]],
        allow=[request.get("allow")], on_unknown=request.get("on_unknown", "error"),
    )  # fmt: skip
    return found


def test_requests_at_once_get_the_lists_of_the_library_and_a_bad_one_among_them_is_refused_alone(world, served):
    recommender = Recommender.from_pretrained(world / "target")
    bodies = [json.dumps(each) for each in GOOD * 6] + list(BAD)
    with ThreadPoolExecutor(MANY) as pool:
        answers = list(
            pool.map(lambda body: httpx2.post(f"{served}/recommend", content=body, timeout=60), bodies[::-1])
        )
    sizes = []
    for body, answer in zip(bodies[::-1], answers, strict=True):
        said = answer.json()
        if body in BAD:
            assert answer.status_code == 422
            assert said["detail"].startswith(BAD[body])
            assert "\n" not in said["detail"]
            continue
        assert answer.status_code == 200, said
        found = expected(recommender, json.loads(body))
        assert said["items"] == found.items
        assert said["scores"] == pytest.approx(found.scores, abs=1e-4)
        assert said["titles"] == [f"Item {item}" for item in found.items]
        sizes.append(said["batch_size"])
    assert max(sizes) > 1, "requests that came together were decoded together"


def test_what_is_counted_is_shown_to_prometheus(served):
    for k in (5, 5, 0):
        ask(served, history=[3], k=k)
    page = httpx2.get(f"{served}/metrics").text
    number = {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) ([\d.e+]+)$", page, re.MULTILINE)}
    lists = number['atspeed_requests_total{status="200"}']
    assert lists >= 2
    assert number['atspeed_requests_total{status="422"}'] >= 1
    assert number["atspeed_request_seconds_count"] == number["atspeed_batch_size_count"] == lists
    assert 0 < number["atspeed_request_seconds_p50"] <= number["atspeed_request_seconds_p99"]
    assert lists <= number["atspeed_target_calls_total"] <= 4 * lists
    assert number["atspeed_in_flight"] == 0
    assert number["atspeed_resident_bytes"] > 1e8


def test_a_person_finds_a_page_a_user_and_the_tree_of_a_request(served):
    assert "<title>AtSpeed: recommend</title>" in httpx2.get(served).text
    user = httpx2.get(f"{served}/user").json()
    assert user["titles"] == [f"Item {item}" for item in user["history"]]
    answer = ask(served, history=user["history"], k=3, tree=True).json()
    assert "added by the target" in answer["tree"]
    assert answer["items"] == ask(served, history=user["history"], k=3).json()["items"]
    assert httpx2.get(f"{served}/docs").status_code == 200


def test_a_catalogue_is_replaced_while_requests_are_answered_and_one_that_does_not_fit_is_not(world, served, tmp_path):
    best = ask(served, history=[3], k=1).json()["items"][0]
    catalogue = load_dataset(str(world / "data"), "toy").catalogue
    catalogue.without([best]).save(tmp_path / "fewer.json")
    strange = Catalogue(catalogue.identifiers | {300: ("<x_1>", "<x_2>", "<x_3>", "<x_4>")})
    strange.save(tmp_path / "strange.json")

    def reload(**changes):
        return httpx2.post(f"{served}/admin/reload", json=changes, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, served, history=[3], k=5) for _ in range(20)]
        reloaded = reload(index=str(tmp_path / "fewer.json"))
        assert reloaded.status_code == 200, reloaded.text
        assert all(each.result().status_code == 200 for each in answers)
    assert reloaded.json()["items"] == len(catalogue.identifiers) - 1
    without = ask(served, history=[best], k=20).json()
    assert best not in without["items"], "it may stand in a history, and in no list"
    for changes, said in (
        ({"index": str(tmp_path / "strange.json")}, "was not trained for identifier token <x_1>"),
        ({"target_model": str(tmp_path / "none")}, "none: not there, or not finished"),
        ({"targets": "x"}, "targets: Extra inputs are not permitted"),
    ):
        refused = reload(**changes)
        assert (refused.status_code, said in refused.json()["detail"]) == (422, True), refused.text
        assert ask(served, history=[best], k=20).json()["items"] == without["items"]
    assert reload(index=None).json()["items"] == len(catalogue.identifiers)
    assert ask(served, history=[3], k=1).json()["items"] == [best]


@pytest.mark.parametrize("signalled", ["the server", "all of its processes"])
def test_a_stopped_service_answers_what_it_has_let_in_and_lets_in_no_more(world, signalled):
    answers = []

    def ask_until_it_ends(url):
        try:
            while (answer := ask(url, history=[3, 5, 7], k=20)).status_code == 200:
                answers.append(200)
            answers.append(answer.status_code)
        except httpx2.TransportError:
            answers.append(None)  # came when nobody listened any more

    with service(world, PAGE="false") as (process, url), ThreadPoolExecutor(8) as pool:
        assert httpx2.get(url).status_code == 404
        asked = [pool.submit(ask_until_it_ends, url) for _ in range(8)]
        while len(answers) < 20:
            time.sleep(0.01)
        (os.kill if signalled == "the server" else os.killpg)(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert "Traceback" not in process.stdout.read()
        for each in asked:
            each.result()
    assert set(answers) <= {200, 503, None}, "nothing that was let in got another answer"


def test_the_load_test_counts_waits_and_compares(world, served):
    variables = {"URL": served, "TARGET_MODEL": str(world / "target"), "K": "5", "CLIENTS": "1,4", "RATES": "20"}
    output, code = script("load", world, **variables, DURATION="1", OUTPUT=str(world / "load"))
    assert code == 0, output
    table = pd.read_csv(world / "load/load.csv")
    assert table["load"].tolist() == ["1 client", "4 clients", "20 a second"]
    assert (table["lists"] > 0).all()
    assert table[["failures", "refused"]].to_numpy().sum() == 0
    assert (table["p50_ms"] <= table["p99_ms"]).all()
    assert re.search(r"0 lists changed .*; (\d+) of \1 lists are equal to the library's", output)


@pytest.fixture
def gate(world):
    served, _ = ServedCatalogue.open(world / "target")
    return Gate(served, {}, RequestLimits(k=10, queue=2), tree=False)


def test_where_too_many_wait_or_the_service_ends_the_next_is_told_when_to_come_again(gate):
    body = b'{"history": [3], "k": 5}'
    assert gate.admit(body).k == 5
    gate.in_flight.value = 2
    with pytest.raises(RefusedRequest, match="2 requests are waiting") as refused:
        gate.admit(body)
    assert refused.value.response().status_code == 503
    assert 1 <= int(refused.value.response().headers["Retry-After"]) <= 60
    gate.in_flight.value = 0
    with pytest.raises(RefusedRequest, match="tree: is not drawn here"):
        gate.admit(b'{"history": [3], "k": 5, "tree": true}')
    gate.draining.set()
    with pytest.raises(RefusedRequest, match="being stopped"):
        gate.admit(body)


@pytest.mark.parametrize(
    ("token", "host", "header", "status"),
    [
        (None, "127.0.0.1", "", None),
        (None, "::1", "", None),
        (None, "10.0.0.7", "", 403),
        ("secret", "10.0.0.7", "Bearer secret", None),
        ("secret", "127.0.0.1", "", 401),
        ("secret", "127.0.0.1", "Bearer secrets", 401),
    ],
)
def test_who_may_reload(monkeypatch, token, host, header, status):
    monkeypatch.delenv(TOKEN, raising=False)
    if token:
        monkeypatch.setenv(TOKEN, token)
    headers = [(b"authorization", header.encode())] if header else []
    request = Request({"type": "http", "client": (host, 1234), "headers": headers})
    if status is None:
        _check_admin(request)
        return
    with pytest.raises(HTTPException) as refused:
        _check_admin(request)
    assert refused.value.status_code == status


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "10.1.2.3"], "--host 10.1.2.3: choose from"),
        (["--port", "80"], "--port 80: must be in 1024 … 65535"),
        (["--max_queue", "0"], "--max_queue 0: must be at least 1"),
        (["--histories", "none.jsonl", "--dataset", "toy"], "one of the two"),
        (["--titles", "none.csv"], "none.csv: no such file"),
        (["--index", "none.json"], "none.json: no such file"),
        (["--raw_ids", "none.csv"], "none.csv"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line_before_any_process_is_started(world, flags, said):
    command = [sys.executable, "-m", "atspeed", "serve", "--target_model", world / "target", "--port", str(free_port())]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, env=os.environ, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr


def test_a_port_that_is_taken_and_a_draft_of_another_catalogue_are_refused(world, served, tmp_path):
    output, code = script("serve", world, TARGET_MODEL=str(world / "target"), PORT=served.rpartition(":")[2])
    assert (code, "Address already in use" in output) == (2, True)
    draft = tmp_path / "draft"
    shutil.copytree(world / "target", draft)
    Catalogue.load(draft / "catalogue.json").without([7]).save(draft / "catalogue.json")
    facts = json.loads((draft / "facts.json").read_text())
    (draft / "facts.json").write_text(json.dumps(facts | {"stage": "train"}))
    own = {"TARGET_MODEL": str(world / "target"), "DRAFT_MODEL": str(draft), "PORT": str(free_port())}
    output, code = script("serve", world, **own)
    assert (code, "was trained for another catalogue" in output) == (2, True)
