"""Text in tables: tokenizers, and what they make of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedkd
from fedkd.cli.main import main
from fedkd.data.load import load_data
from fedkd.data.sources.tokenizer import Bytes, learn_byte_pairs, learn_words, read_tokenizer
from fedkd.plan.load import parse_scenario

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("no_report")

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "poor")


@pytest.fixture
def tables(digits_scenario, tmp_path) -> dict:
    """240 sentences of two clients, a fifth of them for tests."""
    draw = np.random.default_rng(0)
    rows = []
    for n in range(240):
        words = [*draw.choice(["the", "film", "is", f"w{n}"], 4), draw.choice((BAD, GOOD)[n % 2])]
        site, fold = "ab"[n // 2 % 2], "test" if n % 5 == 0 else "train"
        rows.append({"text": " ".join(draw.permutation(words)), "mood": n % 2, "site": site, "fold": fold})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": "text", "label": "mood", "client": "site", "split": "fold"}
    args = {"path": str(tmp_path / "rows.jsonl"), "columns": columns, "tokenizer": {"length": 8}}
    data = {"dataset": "table", "args": args, "clients": 2, "partition": {"scheme": "natural"}}
    return digits_scenario | {"data": data | {"transfer": {"size": 60}}, "rounds": 4}


def test_tokenizers_go_there_and_back():
    words = learn_words(iter(["Good, good film", "a bad film"]), 6)
    assert words.words == ("film", "good", ",", "a") and words.size == 6
    assert words.ids("A good day") == [5, 3, 1] and words.text([5, 3, 1, 0]) == "a good ?"
    assert Bytes().text([*Bytes().ids("naïve ☃"), 0, 0]) == "naïve ☃" and max(Bytes().ids("ÿ\xff")) < 257
    pytest.importorskip("tokenizers")
    texts = ["low lower lowest"] * 5
    pairs = learn_byte_pairs(iter(texts), 270)
    assert pairs.ids("lower") == learn_byte_pairs(iter(texts), 270).ids("lower")
    assert pairs.text(pairs.ids("lowest ☃")) == "lowest ☃" and len(pairs.ids("low")) == 1
    assert 0 not in pairs.ids("any text") and pairs.size <= 270


def test_words_of_a_file_are_numbered_by_line(tmp_path):
    (tmp_path / "words.txt").write_text("Film\ngood\n\n")
    assert read_tokenizer(tmp_path / "words.txt").ids("a good film") == [1, 3, 2]


def test_the_vocabulary_is_that_of_the_transfer_set_unless_the_train_split_is_named(tables):
    data = load_data(parse_scenario(tables))
    assert data.kind.name == "text" and set(np.unique(data.transfer_x)) >= set(range(2, data.kind.vocabulary))
    assert (data.x == 1).any() and not (data.transfer_x == 1).any()
    tables["data"]["args"]["tokenizer"]["learn_from"] = "train"
    whole = load_data(parse_scenario(tables))
    assert whole.kind.vocabulary > data.kind.vocabulary and not (whole.x == 1).any()


def test_a_text_table_equals_the_same_ids_from_an_npz(tables, tmp_path):
    tables["data"]["args"]["tokenizer"] = {"kind": "bytes", "length": 40}
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    x = np.array([(list(row["text"].encode()) + [-1] * 40)[:40] for row in rows]) + 1
    y, test = np.array([row["mood"] for row in rows]), np.array([row["fold"] == "test" for row in rows])
    owners = np.array([row["site"] for row in rows])[~test]
    np.savez(
        tmp_path / "ids.npz",
        train_x=x[~test],
        train_y=y[~test],
        test_x=x[test],
        test_y=y[test],
        owners=owners,
    )
    one = load_data(parse_scenario(tables))
    tables["data"] |= {"dataset": "npz", "args": {"path": str(tmp_path / "ids.npz"), "kind": "text"}}
    other = load_data(parse_scenario(tables))
    for name in ("x", "y", "transfer_x", "test_x", "test_y", "source_index"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_models_of_text_learn_in_one_federation(tables, tmp_path):
    tables["clients"] = [{"model": "bag"}, {"model": "textcnn"}]
    tables["training"] = {"lr": 0.01, "batch_size": 8, "local_epochs": 3}
    folder = fedkd.run(parse_scenario(tables), out=tmp_path / "run").folder
    assert json.loads((folder / "summary.json").read_text())["final"]["accuracy_global"]["mean"] > 0.8


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"kind": "word"}, "data.args.tokenizer.kind: must be one of words, bytes, bpe, file, got 'word'"),
        ({"lenght": 8}, "data.args.tokenizer.lenght: unknown argument of 'tokenizer'; did you mean 'length'"),
        ({"length": 0}, "data.args.tokenizer.length: must be ≥ 1, got 0"),
        ({"vocabulary": 2}, "data.args.tokenizer.vocabulary: must be ≥ 3, got 2"),
        ({"kind": "file"}, 'data.args.tokenizer.path: is needed with kind = "file"'),
    ],
)
def test_wrong_tokenizers_are_one_line_with_status_2(tokenizer, message, tables, tmp_path, capsys):
    tables["data"]["args"]["tokenizer"] = tokenizer
    text = json.dumps(tables["data"]).replace('":', '" =')
    (tmp_path / "t.toml").write_text(f'name = "t"\ndata = {text}\nclients = [{{ model = "bag" }}]\n')
    assert main(["check", str(tmp_path / "t.toml")]) == 2
    assert message in capsys.readouterr().err


def test_a_vocabulary_needs_a_held_out_transfer_set(tables):
    tables["data"]["transfer"] = {"source": "digits", "size": 9}
    with pytest.raises(fedkd.errors.UserError, match="no transfer set is held out") as caught:
        load_data(parse_scenario(tables))
    assert caught.value.key == "data.args.tokenizer.learn_from"
