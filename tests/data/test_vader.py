"""Sentences of four domains: documents stay together, a domain is a client or the transfer set."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.load import load_data
from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.vader import DOMAINS, rating_class, read_domain
from fedkd.errors import UserError
from fedkd.plan.load import parse_scenario


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four small files: 40 documents of two sentences each, all with the word of their domain."""
    (tmp_path / "vader").mkdir()
    for n, domain in enumerate(DOMAINS):
        rows = ["id\trating\ttext\tratings"]
        rows += [
            f'{d}_{s}\t{(d % 5 - 2) / 2 + n / 100}\t{domain} d{d} "s{s}\t1,2'
            for d in range(40)
            for s in (1, 2)
        ]
        (tmp_path / "vader" / f"{domain}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    return tmp_path / "vader"


def scenario(**data):
    transfer = data.pop("transfer", {"size": 30})
    given = {"dataset": "vader", "clients": 4, "partition": {"scheme": "natural"}, "transfer": transfer}
    return parse_scenario({"name": "v", "data": given | data, "clients": [{"model": "bag"}]})


def test_ratings_within_a_half_are_neutral():
    assert rating_class(np.array([-4, -0.51, -0.5, 0, 0.5, 0.51, 4])).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_sentences_of_a_document_are_on_one_side(folder):
    args = {"tokenizer": {"kind": "bytes", "length": 30}}
    data = load_dataset(SourceRequest("vader", folder.parent, args))

    def documents(x):
        return {bytes(row[row > 0] - 1).rsplit(b" ", 1)[0] for row in x.astype(np.uint8)}

    train, test = documents(data.train_x), documents(data.test_x)
    assert not train & test and len(train | test) == 160 and len(data.test_x) == 64
    rated = SourceRequest("vader", folder.parent, args, regression=True)
    assert (load_dataset(rated).test_x == data.test_x).all()
    assert rating_class(load_dataset(rated).test_y[:, 0]).tolist() == data.test_y.tolist()


def test_a_client_is_a_domain(folder):
    data = load_data(scenario())
    assert data.owners == tuple(sorted(DOMAINS)) and data.num_clients == 4
    assert data.classes == 3 and data.kind.name == "text"


def test_the_transfer_set_may_come_from_one_domain(folder):
    data = load_data(scenario(transfer={"size": 30, "owners": ["movies"]}))
    first = np.unique(data.transfer_x[:, 0])
    assert len(first) == 1, "each sentence of the domain begins with the same word"
    sizes = {name: len(data.client(n).train_x) for n, name in enumerate(data.owners)}
    assert len(set(sizes.values())) == 2 and min(sizes, key=sizes.get) == "movies"
    # The vocabulary is that of the transfer set: words of other domains alone are unknown.
    tweets = data.client(data.owners.index("tweets")).train_x
    assert set(np.unique(tweets[:, 0])) == {1}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"args": {"domains": ["film"]}}, "data.args.domains: unknown domain 'film'; "),
        ({"args": {"domains": []}}, "data.args.domains: must list some of tweets, "),
        ({"args": {"domains": ["movies", "movies"]}}, "data.args.domains: names a domain twice"),
        ({"args": {"test_share": 1.0}}, "data.args.test_share: must be between 0 and 1, got 1.0"),
        ({"transfer": {"owners": ["film"]}}, "data.transfer.owners: no training sample has the owner 'film'"),
        ({"transfer": {"owners": ["movies"], "size": 70}}, "data.transfer.size: must be < 64, "),
        ({"dataset": "digits", "transfer": {"owners": ["a"]}}, "data.transfer.owners: no training sample"),
    ],
)
def test_wrong_requests_are_one_line(data, told, folder):
    with pytest.raises(UserError) as caught:
        load_data(scenario(**data))
    assert f"{caught.value.key}: {caught.value.message}".startswith(told)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1\t2.0", "line 2: must have an id, a rating and a text, got '1\\t2.0'"),
        ("1\tgood\ttext", "line 2: must have an id, a rating and a text"),
        ("1\tnan\ttext", "line 2: the rating must be from -4 to 4, got nan"),
        ("1\t5\ttext", "line 2: the rating must be from -4 to 4, got 5"),
        ("1_1\t1\ta\n1_2\t1\tb", "has fewer than two documents"),
    ],
)
def test_damaged_files_are_one_line(line, told, tmp_path):
    path = tmp_path / "tweets.tsv"
    path.write_text(f"id\trating\ttext\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"tweets\.tsv") as caught:
        read_domain(path)
    assert told in caught.value.message and "\n" not in caught.value.message


def test_without_the_folder_the_message_names_the_places(tmp_path):
    with pytest.raises(UserError, match=r"put tweets\.tsv, movies\.tsv, products\.tsv, editorials\.tsv into"):
        load_dataset(SourceRequest("vader", tmp_path))
