"""Item texts in every form, and the vectors that an encoder makes of them."""

import csv
import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from conftest import save_encoder
from genrec.data.splits import Splits, save_dicts
from genrec.identifiers import embeddings as module
from genrec.identifiers.embeddings import Encoder, write_embeddings
from genrec.identifiers.item_texts import highest_number, item_names, known_titles, read_texts, read_titles
from genrec.identifiers.vectors import load_embeddings
from genrec.runtime.errors import UserError

NAMES = ["B001", "B002", "B003"]
FULL = "Title: Rose & Co. Soap\nBrand: Rose\nCategories: Beauty, Soaps\nDescription: It is mild."
BRIEF = "Title: Comb"
RECORDS = {  # of B001 and B002, as each form writes them
    "2014": [
        {"asin": "B001", "title": "Rose &amp; Co. Soap", "brand": "Rose", "price": 3.5,
         "categories": [["Beauty", "Soaps"], ["Beauty"]], "description": "<p>It  is<br />mild."},
        {"asin": "B002", "title": "Comb"},
    ],
    "2018": [
        {"asin": "B001", "title": "Rose &amp; Co. Soap", "brand": "Rose", "category": ["Beauty", "Soaps"],
         "description": ["It is mild."]},
        {"asin": "B002", "title": "Comb", "brand": "", "category": [], "description": None},
    ],
    "2023": [
        {"parent_asin": "B001", "title": "Rose & Co. Soap", "store": "Rose", "categories": ["Beauty", "Soaps"],
         "description": [], "features": ["It is mild."], "details": {"Size": "L"}},
        {"parent_asin": "B002", "title": "Comb", "store": None, "categories": []},
    ],
    "own": [
        {"raw_id": "B001", "title": "Rose & Co. Soap", "brand": "Rose", "categories": "Beauty, Soaps",
         "description": "It is mild."},
        {"raw_id": "B002", "title": "Comb", "brand": "", "categories": "", "description": ""},
    ],
    "numbers": [
        {"item": 0, "title": "Rose & Co. Soap", "brand": "Rose", "categories": "Beauty, Soaps",
         "description": "It is mild."},
        {"item": 1, "title": "Comb", "brand": "", "categories": "", "description": ""},
    ],
}  # fmt: skip


def write(path, records, form):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        if ".csv" in path.name:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
        else:
            file.write("".join((repr(r) if form == "2014" else json.dumps(r)) + "\n" for r in records))
    return path


def test_a_column_of_texts_is_taken_as_it_is(tmp_path):
    rows = [
        {"item": 0, "raw_id": "B001", "text": " Soap. Mild & <i>red</i>. ", "title": "Comb"},
        {"item": 1, "raw_id": "B002", "text": ""},
        {"item": 2, "raw_id": "B003", "text": "Comb."},
    ]
    read = read_texts(write(tmp_path / "items.parquet", rows, "specgr"), NAMES)
    assert (read.texts, read.without) == (["Soap. Mild & <i>red</i>.", "B002", "Comb."], [1])


@pytest.mark.parametrize(
    ("form", "name"),
    [("2014", "meta.json.gz"), ("2014", "meta.json"), ("2018", "meta.json.gz"), ("2023", "meta.jsonl"),
     ("2023", "meta.parquet"), ("own", "items.csv"), ("own", "items.csv.gz"), ("own", "items.parquet"),
     ("numbers", "items.csv"), ("numbers", "items.parquet")],
)  # fmt: skip
def test_every_form_gives_the_same_texts(tmp_path, form, name):
    read = read_texts(write(tmp_path / name, RECORDS[form], form), NAMES)
    assert read.texts == [FULL, BRIEF, "B003"]
    assert read.without == [2]
    assert read.absent == {"title": 1, "brand": 2, "categories": 2, "description": 2}
    assert read.problems() == ["1 of 3 items have no text, only their raw id: 2 (B003)"]


def test_rows_may_name_their_item_by_number_or_by_raw_id(tmp_path):
    lines = ['{"item": 1, "title": "Comb"}', '{"asin": "B001", "title": "Soap"}', '{"item": "0", "title": "no more"}']
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    read = read_texts(tmp_path / "items.jsonl", NAMES)
    assert (read.texts[:2], read.twice, read.others) == (["Title: Soap", "Title: Comb"], 1, 0)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "u.item",
            [
                "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|0|0|0|1|1|1"
                + 13 * "|0",
                "2|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/title|0|0|0|0|0|0|0|0|1" + 9 * "|0" + "|0",
                "no film",
            ],
        ),
        (
            "movies.dat",
            [
                "1::Toy Story (1995)::Animation|Children's|Comedy",
                "2::Misérables, Les (1995)::Drama",
                "no film",
            ],
        ),
    ],
)
def test_the_films_of_movielens_are_read_as_grouplens_wrote_them(tmp_path, name, lines):
    (tmp_path / name).write_bytes("\n".join(lines).encode("latin-1"))
    read = read_texts(tmp_path / name, ["1", "2"])
    assert read.texts == [
        "Title: Toy Story (1995)\nCategories: Animation, Children's, Comedy",
        "Title: Misérables, Les (1995)\nCategories: Drama",
    ]
    assert read.broken == [f"{tmp_path / name}, line 3: no film of MovieLens: 'no film'"]


def test_broken_rows_are_named_by_line_and_nothing_is_executed(tmp_path):
    path, marker = tmp_path / "meta.json", tmp_path / "executed"
    lines = [
        '{"asin": "B001", "title": "Soap"}', f"{{'asin': __import__('pathlib').Path('{marker}').touch()}}", "[1]",
        '{"title": "no id"}', '{"asin": "B001", "title": "Again"}', '{"asin": "X", "title": "foreign"}', "",
        '{"asin": "B002", "ti', '{"asin": "B002", "title": "Comb"}',
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    read = read_texts(path, NAMES)
    assert read.texts == ["Title: Soap", "Title: Comb", "B003"]
    assert [row.partition(": ")[0].rpartition(" ")[2] for row in read.broken] == ["2", "3", "4", "8"]
    assert (read.twice, read.others) == (1, 1)
    assert read.problems()[0].startswith(f"4 broken rows were left out, the first: {path}, line 2: neither JSON nor")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta.json", '{"asin": "X", "title": "other"}\n', r"no row names an item of the data set, such as 'B001'"),
        ("meta.txt", "x", r"ends in none of \.json"),
        ("meta.json.gz", "not gzip", r"1 broken rows, the first: .*meta.json.gz, line 1: neither JSON nor a dict"),
        ("items.csv", "asin,title\nB001," + 200_000 * "x", r"items.csv, line 1: not CSV \(field larger than"),
        ("meta.parquet", "not parquet", r"not a Parquet file"),
        ("items.csv", "raw,title\nB001\n", r"1 broken rows, the first: .*items.csv, line 2: not as many fields"),
        ("absent.csv", None, r"no such file"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / name, NAMES)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"raw_id": ["a", "b"], "item": [0, 1]}, None),
        ({"raw_id": ["b", "a"], "item": [1, 0]}, None),
        ({"raw_id": ["a", "b"], "item": [0, 2]}, r"not numbered 0 to 1"),
        ({"raw_id": ["a", "a"], "item": [0, 1]}, r"not numbered 0 to 1 with a raw id each"),
        ({"raw_id": ["a"]}, r"has no column item"),
    ],
)
def test_the_table_of_items_numbers_them_from_0(tmp_path, columns, message):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "items.parquet")
    if message:
        with pytest.raises(UserError, match=message):
            item_names(tmp_path)
    else:
        assert item_names(tmp_path) == ["a", "b"]


TEXTS = ["Title: Soap", "Comb", "Title: Rose mild red one two Soap Comb", "unheard of", "Soap"]


def encode(encoder, texts=TEXTS, batch_size=3):
    return encoder.encode(texts, batch_size, tqdm(disable=True))


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_an_encoder_pools_the_mean_of_each_text_whatever_it_is_read_with(tmp_path, kind):
    encoder = Encoder.load(str(save_encoder(tmp_path, kind)), max_tokens=8)
    found = encode(encoder)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = encoder.tokenizer(text, truncation=True, max_length=8, return_tensors="pt").input_ids
        assert ids.shape[1] <= 8
        with torch.no_grad():
            expected = encoder.model(ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "drop", "message"),
    [
        ("bert", "pooler.", None),
        ("t5", "decoder.", None),
        ("bert", "encoder.layer.0.output", "its weights lack encoder.layer.0.output.LayerNorm.bias and 3 more"),
        ("t5", "encoder.block.0", "its weights lack encoder.block.0"),
    ],
)
def test_an_encoder_that_lacks_what_it_reads_with_is_refused(tmp_path, kind, drop, message):
    file = save_encoder(tmp_path, kind) / "model.safetensors"
    found = encode(Encoder.load(str(tmp_path)))
    weights = load_file(file)
    kept = {name: weight for name, weight in weights.items() if not name.startswith(drop)}
    assert len(kept) < len(weights)
    save_file(kept, file, {"format": "pt"})
    if message:
        with pytest.raises(UserError, match=message):
            Encoder.load(str(tmp_path))
    else:
        np.testing.assert_array_equal(encode(Encoder.load(str(tmp_path))), found)


def test_an_encoder_of_truncated_weights_is_refused(tmp_path):
    file = save_encoder(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="its weights are damaged or truncated"):
        Encoder.load(str(tmp_path))


def save_sentence_transformer(folder, modules, **pooling):
    save_encoder(folder / "0_Transformer")
    listed = [{"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
              for i, kind in enumerate(modules)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | pooling))
    return str(folder)


def test_a_folder_of_sentence_transformers_says_how_to_pool(tmp_path):
    path = save_sentence_transformer(
        tmp_path, ["Transformer", "Pooling", "Normalize"], pooling_mode_cls_token=True, pooling_mode_mean_tokens=False
    )
    encoder = Encoder.load(path)
    found = encode(encoder)
    with torch.no_grad():
        ids = encoder.tokenizer(TEXTS[0], return_tensors="pt").input_ids
        first = encoder.model(ids).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(found[0], first / np.linalg.norm(first), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "bias", "activation"), [("pytorch_model.bin", False, "Identity"), ("model.safetensors", True, "Tanh")]
)
def test_dense_layers_follow_the_pooling_as_in_sentence_t5(tmp_path, file, bias, activation):
    path = save_sentence_transformer(tmp_path, ["Transformer", "Pooling", "Dense", "Normalize"], pooling_mode="mean")
    layer, dense = torch.nn.Linear(16, 10, bias), tmp_path / "2_Dense"
    dense.mkdir()
    settings = {"in_features": 16, "out_features": 10, "bias": bias, "activation_function": f"torch.nn.{activation}"}
    (dense / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"2_Dense: neither model\.safetensors nor pytorch_model\.bin fits"):
        Encoder.load(path)
    weights = {f"linear.{name}": weight for name, weight in layer.state_dict().items()}
    (save_file if file.endswith("safetensors") else torch.save)(weights, dense / file)
    means = encode(Encoder.load(str(tmp_path / "0_Transformer")))
    expected = getattr(torch.nn, activation)()(layer(torch.from_numpy(means))).detach().numpy()
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(encode(Encoder.load(path)), expected, atol=1e-5)
    (dense / "config.json").write_text(json.dumps(settings | {"activation_function": "os.abort"}))
    with pytest.raises(UserError, match="activation abort is not supported, only Identity, Tanh"):
        Encoder.load(path)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "CNN"], {"pooling_mode_mean_tokens": True}, r"its module CNN is not supported"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, r"pooling pooling_mode_max_tokens is not sup"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, r"pooling weightedmean is not supported"),
    ],
)
def test_modules_that_are_not_supported_are_refused_by_name(tmp_path, modules, pooling, message):
    with pytest.raises(UserError, match=message):
        Encoder.load(save_sentence_transformer(tmp_path, modules, **pooling))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--encoder .*: no Hugging Face encoder with its tokenizer there"):
        Encoder.load(str(tmp_path))


def test_embedding_goes_on_with_the_part_where_it_stopped(tmp_path, monkeypatch):
    encoder, about = Encoder.load(str(save_encoder(tmp_path / "encoder"))), {"texts": "abc"}
    monkeypatch.setattr(module, "PART", 2)
    read, stop = [], [False, True]

    def encode_two_parts(self, texts, *rest, whole=Encoder.encode):
        read.append(texts)
        if len(read) == 2 and stop.pop():
            raise InterruptedError
        return whole(self, texts, *rest)

    monkeypatch.setattr(Encoder, "encode", encode_two_parts)
    with pytest.raises(InterruptedError):
        write_embeddings(tmp_path / "out", lambda: encoder, TEXTS, 2, about)
    assert not (tmp_path / "out" / "embeddings.npy").exists()
    path = write_embeddings(tmp_path / "out", lambda: encoder, TEXTS, 2, about)
    assert read[2:] == [TEXTS[2:4], TEXTS[4:]], "the first part was kept"
    assert sorted(p.name for p in path.parent.iterdir()) == ["embeddings.json", "embeddings.npy"]
    np.testing.assert_allclose(load_embeddings(path, 5).numpy(), encode(encoder), atol=1e-5)
    write_embeddings(tmp_path / "out", lambda: None, TEXTS, 2, about)
    read.clear()
    write_embeddings(tmp_path / "out", lambda: encoder, TEXTS[:3], 2, {"texts": "other"})
    assert read == [TEXTS[:2], TEXTS[2:3]], "what was made of other texts is not taken"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 2)), r"has 4 rows, but the data set has 3 items"),
        (np.zeros(3), r"holds shape \(3,\), not \(items, numbers\)"),
        (np.zeros((3, 2), int), r"holds int64, not float16, float32 or float64"),
        (np.array([[1, 2], [3, np.nan], [np.inf, 1]]), r"row 1 holds a value that is not finite"),
        (np.array([[1, "x"]] * 3, object), r"not a \.npy file of numbers, or truncated"),
        (b"not npy", r"not a \.npy file of numbers"),
        (None, r"no such file"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, value, message):
    path = tmp_path / "vectors.npy"
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif value is not None:
        np.save(path, value, allow_pickle=True)
    with pytest.raises(UserError, match=f"--embeddings .*vectors.npy: {message}"):
        load_embeddings(path, 3)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_vectors_of_any_float_are_read(tmp_path, kind):
    np.save(tmp_path / "vectors.npy", np.arange(6).reshape(3, 2).astype(kind))
    assert load_embeddings(tmp_path / "vectors.npy", 3).tolist() == [[0, 1], [2, 3], [4, 5]]


WHOLE = {"0": {"title": "Soap", "description": "['mild', 'red']"}, "2": {"title": "Comb"}}


def test_items_in_one_object_are_read_and_those_that_never_occur_are_of_the_catalogue(tmp_path):
    """NAME.item.json of LC-Rec and MiniOneRec; item 2 is in no interaction."""
    save_dicts(Splits({0: [0, 1]}, {0: [1]}, {0: [0]}), tmp_path)
    (tmp_path / "Arts.item.json").write_text(json.dumps(WHOLE, indent=1))
    highest = highest_number(tmp_path / "Arts.item.json")
    assert item_names(tmp_path) == ["0", "1"]
    assert item_names(tmp_path, highest=highest) == ["0", "1", "2"]
    assert item_names(tmp_path, count=5) == ["0", "1", "2", "3", "4"]
    with pytest.raises(UserError, match=r"--item_count 1: .* has an item 1"):
        item_names(tmp_path, count=1)
    read = read_texts(tmp_path / "Arts.item.json", item_names(tmp_path, highest=highest))
    assert read.texts == ["Title: Soap\nDescription: mild, red", "1", "Title: Comb"]
    assert known_titles(tmp_path) == {0: "Soap", 2: "Comb"}


def test_recboles_items_are_read(tmp_path):
    (tmp_path / "ml.item").write_text('item_id:token\tmovie_title:token_seq\tclass:token_seq\n7\tToy "Story\tComedy\n')
    assert read_texts(tmp_path / "ml.item", ["7"]).texts == ['Title: Toy "Story\nCategories: Comedy']
    assert read_titles(tmp_path / "ml.item", {"7": 0}) == {0: 'Toy "Story'}
