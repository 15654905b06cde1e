"""Files of the schema of Amazon Reviews 2023 become numbered samples."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset

from conftest import ROOT, save_encoder, script, succeed
from genrec.data.catalogue import Catalogue
from genrec.identifiers.quantise import identification_digits
from genrec.identifiers.rqvae import load_rqvae
from genrec.identifiers.vectors import load_embeddings
from genrec.runtime.errors import UserError
from genrec.runtime.text import read_json
from specgr.configuration.config import load_config
from specgr.data.examples import load_data
from specgr.process_data import main, save

TRAIN = [("u1", "B2", 100, ""), ("u1", "B1", 300, "B2"), ("u2", "B3", 200, ""), ("u2", "B2", 400, "B3")]
VALID = [("u1", "B4", 500, "B2 B1"), ("u3", "NA", 600, "")]
TEST = [("u3", "B1", 700, "NA"), ("u1", "B5", 800, "B2 B1 B4"), ("u2", "B3", 900, "B3 B2")]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    csv = tmp_path / "source/benchmark/5core/timestamp_w_his"
    csv.mkdir(parents=True)
    for split, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        lines = [f"{user},{item},5.0,{time},{history}" for user, item, time, history in rows]
        (csv / f"Games.{split}.csv").write_text("\n".join(["user_id,parent_asin,rating,timestamp,history", *lines, ""]))
    meta = tmp_path / "source/raw/meta_categories"
    meta.mkdir(parents=True)
    items = [
        {"parent_asin": "B2", "title": "Chess &amp; Go", "features": ["Two<br>boards", "wood"], "categories": [],
         "description": ["Old."], "store": "S", "price": 3.5, "details": {"Age": 8}},
        {"parent_asin": "B9", "title": "Not sold", "features": [], "price": None, "details": {}},
        {"parent_asin": "NA", "title": "No name", "features": [], "categories": ["Games", "Board"], "price": "—"},
    ]  # fmt: skip
    (meta / "meta_Games.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return tmp_path / "source"


def test_items_are_numbered_by_first_appearance_and_new_ones_are_unseen(source, tmp_path):
    folder = tmp_path / "data/games"
    folder.mkdir(parents=True)
    (folder / ".train.parquet.partial-1").touch()  # of a run that was killed
    main("Games", str(folder), str(source))
    items = pd.read_parquet(folder / "items.parquet")
    assert items["raw_id"].tolist() == ["B2", "B3", "B1", "B4", "NA", "B5"]
    assert items["text"].tolist() == ["Chess & Go. Two boards, wood. Old.", "", "", "", "No name. Games, Board.", ""]
    assert json.loads((folder / "facts.json").read_text())["results"]["items_seen"] == 3
    Catalogue({item: (f"<a_{item}>", "<b_0>") for item in range(6)}).save(folder / "games.index.json")
    data = load_data(str(tmp_path / "data"), "games", max_history=2)
    assert data.seen.tolist() == [True, True, True, False, False, False]
    assert data.train.histories.tolist() == [[0, -1], [1, -1]]
    assert data.train.targets.tolist() == [2, 0]
    assert (data.valid.histories.tolist(), data.valid.targets.tolist()) == ([[0, 2]], [3])
    assert (data.test.histories.tolist(), data.test.targets.tolist()) == ([[4, -1], [2, 3], [1, 0]], [2, 5, 1])
    assert data.subset(data.test, "unseen").targets.tolist() == [5]
    assert data.subset(data.test, "in-sample").targets.tolist() == [2, 1]


def test_with_an_encoder_the_script_leaves_all_that_training_reads(source, tmp_path):
    main("Games", str(tmp_path / "data/Games"), str(source))
    own = {"CATEGORY": "Games", "SOURCE": str(source), "ENCODER": str(save_encoder(tmp_path / "encoder")),
           "CODEBOOKS": "2,2,2", "HIDDEN": "12", "LATENT": "6"}  # fmt: skip
    log = succeed("specgr_process_data", tmp_path, "--max_tokens", "8", **own)
    assert "Games: done already, nothing to do" in log
    assert "item texts: 2 of 6 items" in log
    assert "codebooks are fitted to the 3 of 6 items that are in training" in log
    data = load_data(str(tmp_path / "data"), "Games")
    folder = tmp_path / "data/Games/Games.rq-vae"
    here = {"data_path": str(tmp_path / "data"), "dataset": "Games"}
    config = load_config(ROOT / "code/specgr/configs/games.yaml", here)
    vectors, model = load_embeddings(Path(config.embeddings), 6), load_rqvae(folder / "model.safetensors")
    semantic = model.codes(vectors)
    digits = identification_digits(semantic)
    assert digits.max() > 0, "items without text are alike"
    assert torch.equal(data.codes.codes[:, 3], digits)
    assert Catalogue.load(tmp_path / "data/Games/Games.rq-vae.json").identifiers == {
        item: (f"<a_{a}>", f"<b_{b}>", f"<c_{c}>", f"<d_{digit}>")
        for item, (a, b, c), digit in zip(range(6), semantic.tolist(), digits.tolist(), strict=True)
    }
    arguments = json.loads((folder / "facts.json").read_text())["arguments"]
    published = {"optimizer": "adagrad", "fit_on": "train", "distinct": "digit", "weight_decay": 0, "warmup_epochs": 0}
    assert arguments.items() >= published.items()


def test_what_is_wrong_is_named(source, tmp_path):
    with pytest.raises(UserError, match=r"Toys\.train\.csv"):
        main("Toys", str(tmp_path / "toys"), str(source))
    csv = source / "benchmark/5core/timestamp_w_his/Games.test.csv"
    csv.write_text(csv.read_text().replace("B2 B1 B4", "B2 B7"))
    with pytest.raises(UserError, match="test, row 2: the history names B7"):
        main("Games", str(tmp_path / "games"), str(source))
    csv.write_text("user,item\nu1,B1\n")
    with pytest.raises(UserError, match="not a CSV file with the columns user_id"):
        main("Games", str(tmp_path / "games"), str(source))
    csv.write_text("user_id,parent_asin,rating,timestamp,history\n")
    with pytest.raises(UserError, match=r'a split beside it: .* has no row .*"test"'):
        main("Games", str(tmp_path / "games"), str(source))
    assert not (tmp_path / "games").exists()
    output, code = script("specgr_process_data", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert (code, "error: hf://datasets/McAuley-Lab/Amazon-Reviews-2023: cannot be read (" in output) == (2, True)


def test_made_anew_what_others_put_in_the_folder_stays(source, tmp_path, monkeypatch):
    folder = tmp_path / "games"
    main("Games", str(folder), str(source))
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "games.rq-vae").mkdir()
    (folder / "games.rq-vae/embeddings.npy").touch()
    monkeypatch.chdir(tmp_path)
    main("Games", str(folder), "source/../source")  # done: the same source
    csv = source / "benchmark/5core/timestamp_w_his/Games.test.csv"
    csv.write_text(csv.read_text().replace("B5", "B6"))
    main("Games", str(folder), str(source), overwrite=True)
    assert {path.name for path in folder.iterdir()} == {*made, "games.rq-vae"}
    assert (folder / "games.rq-vae/embeddings.npy").is_file()
    assert "B6" in pd.read_parquet(folder / "items.parquet")["raw_id"].tolist()
    (folder / "facts.json").unlink()
    with pytest.raises(UserError, match="there already"):
        main("Games", str(folder), str(source))


def test_a_table_that_cannot_be_written_leaves_all_as_it_was(tmp_path):
    def tables(n):
        return {name: Dataset.from_dict({"item": [n]}) for name in ("train", "items")}

    save(tmp_path, tables(1), {"n": 1})
    with pytest.raises(AttributeError):
        save(tmp_path, tables(2) | {"test": None}, {"n": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "items.parquet", "train.parquet"]
    assert read_json(tmp_path / "facts.json") == {"n": 1}
    assert pd.read_parquet(tmp_path / "train.parquet")["item"].tolist() == [1]
