"""The stage: from vectors or texts to an index that the other stages read, resumed, extended, and what it refuses."""

import json
import os
import re
import subprocess
import time

import numpy as np
import pyarrow.parquet
import pytest
import torch

from atspeed.commands import build_index
from conftest import ROOT, environment, save_encoder, succeed, vectors
from genrec.data.catalogue import Catalogue
from genrec.data.dataset import load_dataset
from genrec.data.toy import make_toy
from genrec.identifiers import rqvae_training
from genrec.identifiers.collaborative import FILE
from genrec.identifiers.quantise import identification_digits
from genrec.identifiers.rqvae import RQVAESettings
from genrec.identifiers.rqvae_training import fit_rqvae
from genrec.runtime.errors import UserError

N = 120
SMALL = {
    "METHOD": "rq-vae", "INDEX_NAME": "mine", "CODEBOOKS": "8,8,8,16", "HIDDEN": "24,16", "LATENT": "6",
    "WARMUP_EPOCHS": "1", "EPOCHS": "60", "BATCH_SIZE": "16", "LEARNING_RATE": "5e-3",
}  # fmt: skip


def data_set(folder, n=N):
    """Splits without an index, the table of items, and vectors, some of which are equal."""
    data = folder / "data" / "toy"
    make_toy(n_items=N, n_users=200).save(data)
    (data / "toy.index.json").unlink()
    number(data, n)
    np.save(folder / "vectors.npy", vectors(n=N + 30).numpy()[-n:])
    return data


def number(data, n):
    raw = [f"B{item:03d}" for item in range(n)]
    pyarrow.parquet.write_table(pyarrow.table({"raw_id": raw, "item": range(n)}), data / "items.parquet")


def build(folder, **changes):
    """The stage in this process. Returns the index."""
    flags = {"embeddings": str(folder / "vectors.npy"), "codebooks": (8, 8, 8, 16), "hidden": (24, 16), "latent": 6,
             "warmup_epochs": 1, "epochs": 5, "batch_size": 16, "index_name": "mine"}  # fmt: skip
    build_index.main("toy", data_path=str(folder / "data"), **(flags | changes))
    return folder / "data" / "toy" / f"toy.{(flags | changes)['index_name']}.json"


@pytest.fixture
def one_thread():
    """As OMP_NUM_THREADS=1 gives the scripts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_index(tmp_path, one_thread):
    """kill -9 after the first checkpoint, and the command again."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    expected, data = data_set(whole), data_set(folder)
    index = build(whole, epochs=60, learning_rate=5e-3)
    variables = SMALL | {"EMBEDDINGS": str(folder / "vectors.npy")}
    process = subprocess.Popen(
        ["bash", ROOT / "script" / "build_index.sh"], env=environment(folder, **variables), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (data / "toy.mine" / "training" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, 9)
    process.wait()
    assert not (data / index.name).exists()
    log = succeed("build_index", folder, **variables)
    for name in (index.name, "toy.mine/model.safetensors", "toy.mine/report.json"):
        assert (expected / name).read_bytes() == (data / name).read_bytes(), name
    assert "toy.mine: resumed" in log
    assert "epoch 6:" not in log, "what was trained was not trained again"
    assert "0 items still share an identifier" in log
    assert not [path for path in data.rglob(".*partial-*")]
    assert not (data / "toy.mine/training").exists()


def test_the_index_is_what_the_stages_read_and_says_how_good_it_is(tmp_path, capsys):
    data = data_set(tmp_path)
    index = build(tmp_path)
    found = load_dataset(str(tmp_path / "data"), "toy").catalogue
    assert sorted(found.identifiers) == list(range(N))
    assert found.levels == 4
    assert all(re.fullmatch(r"<a_\d+><b_\d+><c_\d+><d_\d+>", "".join(t)) for t in found.identifiers.values())
    report = json.loads((data / "toy.mine" / "report.json").read_text())
    assert report["collision_rate"] > 0, "equal vectors"
    assert report["collision_rate_resolved"] == 0 == report["sharing"]
    assert json.loads((data / "toy.mine" / "sharing.json").read_text()) == []
    assert report["items"] == N
    for level, column in enumerate(zip(*found.identifiers.values(), strict=True)):
        _, counts = np.unique(column, return_counts=True)
        assert report["used"][level] == f"{len(counts)} of {(8, 8, 8, 16)[level]}"
        p = counts / N
        assert report["perplexity"][level] == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=0.06)
    facts = json.loads((data / "toy.mine" / "facts.json").read_text())
    assert facts["catalogue"] == found.fingerprint
    assert not (data / "toy.mine" / "training").exists()
    before = index.stat().st_mtime_ns
    build(tmp_path)
    assert index.stat().st_mtime_ns == before, "done already"
    with pytest.raises(UserError, match=r"toy.mine: was made with --seed 0, not 1"):
        build(tmp_path, seed=1)
    np.save(tmp_path / "vectors.npy", np.load(tmp_path / "vectors.npy") + 1)
    with pytest.raises(UserError, match=r"toy.mine: was made with --source"):
        build(tmp_path)
    capsys.readouterr()
    build(tmp_path, index_name="other", method="rq-kmeans")
    assert "pass it with --index, as toy.mine.json lies beside it" in capsys.readouterr().out


def test_items_that_no_code_is_left_for_are_listed(tmp_path, capsys):
    data = data_set(tmp_path)
    np.save(tmp_path / "vectors.npy", np.repeat(np.eye(6, 20), 20, axis=0))
    catalogue = Catalogue.load(build(tmp_path, method="rq-kmeans", codebooks=(8, 8, 16)))
    listed = json.loads((data / "toy.mine" / "sharing.json").read_text())
    assert len(listed) == 6, "20 equal items each, and 16 codes"
    for group in listed:
        assert [catalogue.identifiers[item] for item in group["items"]] == [tuple(group["identifier"])] * 5
        assert group["raw_id"] == [f"B{item:03d}" for item in group["items"]]
    assert f"{''.join(listed[0]['identifier'])} is shared by" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["rq-vae", "rq-kmeans"])
def test_new_items_get_identifiers_and_the_old_ones_keep_theirs(tmp_path, capsys, method):
    data = data_set(tmp_path)
    index = build(tmp_path, method=method)
    before = index.read_bytes()
    build(tmp_path, extend=True)
    assert "nothing to do" in capsys.readouterr().out
    assert index.read_bytes() == before
    old = np.load(tmp_path / "vectors.npy")
    np.save(tmp_path / "vectors.npy", np.concatenate([old, old[:8], vectors(n=40, seed=0).numpy()[:12]]))
    number(data, N + 20)
    build(tmp_path, extend=True)
    assert index.read_bytes().startswith(before.rstrip(b"\n}")), "byte for byte"
    catalogue = Catalogue.load(index)
    assert sorted(catalogue.identifiers) == list(range(N + 20))
    assert len(catalogue.items_of) == N + 20, "the copies of old items got codes of their own"
    report = json.loads((data / "toy.mine" / "extended-120-139.json").read_text())
    known = {token for item in range(N) for token in catalogue.identifiers[item]}
    assert set(report["unseen_tokens"]) == set(catalogue.tokens) - known
    assert report["items"] == 20
    for i in range(8):
        assert catalogue.identifiers[N + i][:-1] == catalogue.identifiers[i][:-1], "under the prefix of their copies"
    number(data, N + 21)
    for changed, message in (
        (
            np.concatenate([np.random.default_rng(0).permutation(old), old[:21]]),
            "of another encoder, or in another",
        ),
        (np.ones((N + 21, 5)), "was made of vectors of 20 numbers, these have 5"),
        (old, "has 120 rows, but the data set has 141 items"),
    ):
        np.save(tmp_path / "vectors.npy", changed)
        with pytest.raises(UserError, match=message):
            build(tmp_path, extend=True)


def test_new_items_join_an_index_of_who_chose_what_and_the_old_ones_keep_theirs(tmp_path):
    data = data_set(tmp_path)
    plain = build(tmp_path, index_name="plain")
    index = build(tmp_path, collaborative=6)
    before = Catalogue.load(index).identifiers
    assert before != Catalogue.load(plain).identifiers
    kept = (data / "toy.mine" / FILE).read_bytes()
    old = np.load(tmp_path / "vectors.npy")
    np.save(tmp_path / "vectors.npy", np.concatenate([old, old[:8]]))
    number(data, N + 8)
    build(tmp_path, extend=True)
    after = Catalogue.load(index).identifiers
    assert len(after) == N + 8
    assert {item: after[item] for item in range(N)} == before
    assert (data / "toy.mine" / FILE).read_bytes() == kept


def test_the_vectors_of_who_chose_what_are_overwritten_when_unfinished_and_missed_when_gone(tmp_path, monkeypatch):
    data = data_set(tmp_path)
    with monkeypatch.context() as cut:
        cut.setattr(rqvae_training, "fit_rqvae", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, collaborative=6)
    kept = data / "toy.mine" / FILE
    assert kept.is_file()
    build(tmp_path, collaborative=5, overwrite=True)
    kept.unlink()
    number(data, N + 1)
    np.save(tmp_path / "vectors.npy", vectors(n=N + 1).numpy())
    with pytest.raises(UserError, match=r"collaborative\.safetensors: no vectors of who chose what"):
        build(tmp_path, extend=True)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_items_of_training_that_the_table_lacks_are_named(tmp_path):
    data = data_set(tmp_path)
    number(data, 20)
    np.save(tmp_path / "vectors.npy", vectors(n=20).numpy())
    for flags in ({"collaborative": 6}, {"fit_on": "train"}):
        with pytest.raises(UserError, match=r"is in training, but items\.parquet names 20 items alone"):
            build(tmp_path, **flags)


def codes_in(index):
    identifiers = Catalogue.load(index).identifiers
    return torch.tensor([[int(token[3:-1]) for token in identifiers[item]] for item in range(len(identifiers))])


@pytest.mark.parametrize(("layout", "distinct"), [("AtSpeed", "sinkhorn"), ("Parquet", "digit")])
def test_codebooks_are_fitted_on_training_alone_and_new_items_change_no_seen_one(tmp_path, layout, distinct):
    data = data_set(tmp_path)
    seen = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:80]
    if layout == "Parquet":
        pyarrow.parquet.write_table(pyarrow.table({"item": seen.repeat(2).numpy()}), data / "train.parquet")
    else:
        rows = "".join(f"{user} {item + 1}\n" for user, item in enumerate(seen.repeat(3).tolist(), 1))
        (data / "sequential_train.txt").write_text(rows)
    found = vectors(n=N)
    found[:20] = found[20:40]  # so that seen and new items share codes
    np.save(tmp_path / "vectors.npy", found.numpy())
    flags = {"fit_on": "train", "distinct": distinct, "codebooks": (8, 8, 32)}
    codes = codes_in(build(tmp_path, **flags))
    seen = seen.sort().values
    settings = RQVAESettings(
        codebooks=(8, 8, 32), hidden=(24, 16), latent=6, warmup_epochs=1, epochs=5, batch_size=16, distinct=distinct
    )
    model = fit_rqvae(found[seen], settings).model
    assert torch.equal(codes[seen], model.resolve(found[seen], model.codes(found[seen])))
    new = torch.tensor([item for item in range(N) if item not in set(seen.tolist())])
    assert torch.equal(codes[new, :2], model.codes(found[new])[:, :2]), "new items get the nearest of these codes"
    assert len(codes.unique(dim=0)) == N, "distinct"
    found[new] += torch.randn(len(new), 20)
    np.save(tmp_path / "vectors.npy", found.numpy())
    again = codes_in(build(tmp_path, **flags, overwrite=True))
    assert torch.equal(codes[seen], again[seen])
    assert not torch.equal(codes[new], again[new])
    pyarrow.parquet.write_table(pyarrow.table({"item": range(60)}), data / "train.parquet")
    with pytest.raises(UserError, match=r"toy\.mine: was made with --source"):
        build(tmp_path, **flags)


def test_a_digit_tells_apart_the_items_of_the_same_nearest_codes(tmp_path, capsys):
    data = data_set(tmp_path)
    flags = {"codebooks": (6, 6), "distinct": "digit", "epochs": 6, "eval_epochs": 1}
    index = build(tmp_path, **flags)
    old = np.load(tmp_path / "vectors.npy")
    settings = RQVAESettings(
        codebooks=(6, 6), hidden=(24, 16), latent=6, warmup_epochs=1, epochs=6, eval_epochs=1, batch_size=16,
        distinct="digit",
    )  # fmt: skip
    fitted = fit_rqvae(torch.from_numpy(old), settings)
    assert fitted.best == min(fitted.looks, key=lambda look: look.resolved_error), "no collision is left to avoid"
    codes = codes_in(index)
    assert torch.equal(codes[:, :2], fitted.model.codes(torch.from_numpy(old))), "nobody got another code"
    count = {}
    for row in codes.tolist():
        assert row[2] == count.setdefault(tuple(row[:2]), 0), "in order of item numbers"
        count[tuple(row[:2])] += 1
    report = json.loads((data / "toy.mine" / "report.json").read_text())
    assert report["collision_rate"] == pytest.approx(1 - len(count) / N)
    assert (report["digits"], report["moved"], report["sharing"]) == (max(count.values()), 0, 0)
    assert report["error"] == report["error_resolved"] == fitted.best.resolved_error
    assert f"tells apart up to {max(count.values())} items of the same codes" in capsys.readouterr().out
    facts = json.loads((data / "toy.mine" / "facts.json").read_text())["arguments"]
    assert (facts["distinct"], facts["fit_on"]) == ("digit", "all")
    before = index.read_bytes()
    np.save(tmp_path / "vectors.npy", np.concatenate([old, old[:8], old[:8]]))
    number(data, N + 16)
    build(tmp_path, extend=True)
    assert index.read_bytes().startswith(before.rstrip(b"\n}")), "byte for byte"
    extended = codes_in(index)
    assert torch.equal(extended[:, 2], identification_digits(extended[:, :2]))
    assert torch.equal(extended[N:, :2], torch.cat([codes[:8, :2]] * 2))
    content = json.loads(index.read_text()) | {"0": [*Catalogue.load(index).identifiers[0][:2], "<c_100>"]}
    index.write_text(json.dumps(content))
    number(data, N + 17)
    np.save(tmp_path / "vectors.npy", np.concatenate([old, old[:17]]))
    with pytest.raises(UserError, match="the last level does not count the items of the same other codes"):
        build(tmp_path, extend=True)


def test_texts_become_identifiers_and_new_texts_new_ones(tmp_path, caplog):
    data, encoder = data_set(tmp_path), save_encoder(tmp_path / "encoder")
    words = ["Soap", "Comb", "Rose", "mild", "red", "one", "two"]
    rng = np.random.default_rng(0)
    records = [{"asin": f"B{i:03d}", "title": " ".join(rng.choice(words, 6))} for i in range(N + 5) if i != 7]
    items = tmp_path / "meta.json"
    items.write_text("".join(f"{r}\n" for r in records))
    texts = {"embeddings": None, "items": str(items), "encoder": str(encoder)}
    with pytest.raises(UserError, match=r"1 of 120 items have no text, .* 7 \(B007\); .* leave out --strict"):
        build(tmp_path, **texts, strict=True)
    assert not (data / "toy.mine").exists()
    index = build(tmp_path, **texts)
    assert json.loads((data / "toy.mine" / "without_text.json").read_text()) == [{"item": 7, "raw_id": "B007"}]
    vectors_made = data / "toy.mine" / "embeddings.npy"
    assert np.load(vectors_made).shape == (N, 16)
    before = index.read_bytes()
    number(data, N + 5)
    build(tmp_path, **texts, extend=True)
    assert index.read_bytes().startswith(before.rstrip(b"\n}"))
    assert len(Catalogue.load(index).identifiers) == N + 5
    other = save_encoder(tmp_path / "other", "t5")
    number(data, N + 6)
    with pytest.raises(UserError, match=r"of another encoder|these have"):
        build(tmp_path, **(texts | {"encoder": str(other)}), extend=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"embeddings": None}, r"--items FILE is missing: pass --items FILE and --encoder PATH, or --embeddings"),
        ({"embeddings": None, "items": "x.json"}, r"--encoder PATH is missing"),
        ({"items": "x.json"}, r"--embeddings .* takes the place of --items and --encoder"),
        ({"embeddings": None, "items": "x.json", "encoder": "absent"}, r"--encoder absent: no such folder"),
        ({"method": "vq"}, r"--method vq: choose from"),
        ({"fit_on": "valid"}, r"--fit_on valid: choose from all, train"),
        ({"distinct": "none"}, r"--distinct none: choose from sinkhorn, digit"),
        ({"collaborative": N + 1}, r"--collaborative 121: must be at most 120, the items"),
        ({"index_name": "a.b"}, r"--index_name a\.b: letters, digits"),
        ({"extend": True}, r"toy\.mine: not there, or not finished; it is written by: bash script/build_index\.sh"),
        ({"index_name": "theirs"}, r"toy\.theirs\.json: is there already, and not ours"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_written(tmp_path, flags, message):
    data = data_set(tmp_path)
    (data / "toy.theirs.json").write_text("{}")
    before = sorted(data.rglob("*"))
    with pytest.raises(UserError, match=message):
        build(tmp_path, **flags)
    assert sorted(data.rglob("*")) == before


@pytest.mark.slow
def test_twelve_thousand_items_of_768_numbers_share_no_identifier(tmp_path):
    """LC-Rec's network, for two epochs; docs/identifiers.md has the time of a whole training."""
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(40, 768, generator=generator).repeat_interleave(50, 0)
    lines += 0.7 * torch.randn(2000, 768, generator=generator)
    found = lines[torch.randint(2000, (12_000,), generator=generator)]
    found += 0.5 * torch.randn(12_000, 768, generator=generator)
    found[-100:] = found[:100]
    data = data_set(tmp_path)
    number(data, 12_000)
    np.save(tmp_path / "vectors.npy", found.numpy())
    build(tmp_path, codebooks=(256,) * 4, hidden=(2048, 1024, 512, 256, 128, 64), latent=32, epochs=2, batch_size=256)
    report = json.loads((data / "toy.mine" / "report.json").read_text())
    assert report["collision_rate_resolved"] < 0.01 <= report["collision_rate"] + 0.01
