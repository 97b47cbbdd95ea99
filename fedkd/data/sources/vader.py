"""Sentiment of 23,703 sentences in four domains: tweets, films, products and editorials.

Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM 2014.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.kinds import TEXT
from fedkd.data.request import SourceRequest
from fedkd.data.sources.tokenizer import token_ids
from fedkd.errors import UserError, did_you_mean, refuse_if
from fedkd.randomness import numpy_generator

DOMAINS = ("tweets", "movies", "products", "editorials")
CLASSES = ("negative", "neutral", "positive")
NEUTRAL = 0.5
"""Ratings of neutral sentences are within ±0.5."""


def load(request: SourceRequest) -> Dataset:
    """Return token ids of sentences, owned by their domain, and three classes of their mean rating.

    About 20 people rated each sentence from −4 to 4; a rating within ±0.5 is neutral. In regression the
    target is the mean rating. `test_share` of the documents of each domain are the test split, drawn by
    `split_seed`: sentences of one document stay together. It is the same in classification and regression.

    Arguments: `domains`, a list of tweets, movies, products and editorials, by default all; `tokenizer` (see
    `fedkd.data.sources.tokenizer`); `test_share`, `split_seed`. The folder `vader` has a file
    `<domain>.tsv` each, with the columns id, rating and text.
    """
    args = request.arguments(domains=list, tokenizer=dict, test_share=0.2, split_seed=0)
    domains = _domains(args["domains"])
    told = f"must be between 0 and 1, got {args['test_share']}"
    refuse_if(not 0.0 < args["test_share"] < 1.0, told, "data.args.test_share")
    folder = _folder(request)
    texts, ratings, owners, test = list[str](), list[float](), list[str](), list[np.ndarray]()
    for domain in domains:
        documents, rated, written = read_domain(folder / f"{domain}.tsv")
        texts += written
        ratings += rated
        owners += [domain] * len(written)
        test.append(_test_rows(documents, args["test_share"], args["split_seed"], DOMAINS.index(domain)))
    is_test, rating, owner = np.concatenate(test), np.array(ratings), np.array(owners)
    labels = rating if request.regression else rating_class(rating)
    x, size = token_ids(texts, ~is_test, labels, request, request.name, owners=owner)
    return dataset_from_arrays(
        request.name,
        *(x[~is_test], labels[~is_test], x[is_test], labels[is_test]),
        class_names=["rating"] if request.regression else CLASSES,
        owners=owner[~is_test],
        regression=request.regression,
        kind=replace(TEXT, vocabulary=size),
    )


def rating_class(ratings: np.ndarray) -> np.ndarray:
    """Return the class [n] int64 of mean ratings [n]: 0 negative, 1 neutral, 2 positive."""
    return (ratings >= -NEUTRAL).astype(np.int64) + (ratings > NEUTRAL)


def read_domain(path: Path) -> tuple[list[str], list[float], list[str]]:
    """Return the document, the mean rating and the text of each sentence of a file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", key="data.dataset") from error
    documents, ratings, texts = [], [], []
    for number, line in enumerate(lines[1:], 2):
        try:
            name, rating, text = line.split("\t")[:3]
            value = float(rating)
        except ValueError:
            told = f"{path}, line {number}: must have an id, a rating and a text, got {line[:50]!r}"
            raise UserError(told, key="data.dataset") from None
        told = f"{path}, line {number}: the rating must be from -4 to 4, got {rating}"
        refuse_if(not -4.0 <= value <= 4.0, told, "data.dataset")
        documents.append(name.partition("_")[0])
        ratings.append(value)
        texts.append(text)
    refuse_if(len(set(documents)) < 2, f"{path} has fewer than two documents", "data.dataset")
    return documents, ratings, texts


def _domains(given: list[str] | None) -> tuple[str, ...]:
    if given is None:
        return DOMAINS
    refuse_if(not given, f"must list some of {', '.join(DOMAINS)}", "data.args.domains")
    for one in given:
        told = f"unknown domain {one!r}; {did_you_mean(str(one), DOMAINS)}"
        refuse_if(one not in DOMAINS, told, "data.args.domains")
    refuse_if(len(set(given)) < len(given), f"names a domain twice: {given}", "data.args.domains")
    return tuple(given)


def _folder(request: SourceRequest) -> Path:
    tried = [base / "vader" for base in request.folders]
    for folder in tried:
        if folder.is_dir():
            return folder
    places = ", ".join(map(str, tried))
    told = f"'vader' is not downloaded by fedkd; put {', '.join(f'{d}.tsv' for d in DOMAINS)} into {places}"
    raise UserError(told, key="data.dataset")


def _test_rows(documents: list[str], share: float, seed: int, domain: int) -> np.ndarray:
    """Return [n] bool: whole documents until they have a share of the sentences."""
    names, codes = np.unique(documents, return_inverse=True)
    sizes = np.bincount(codes)
    drawn = numpy_generator(seed, "documents", client=domain).permutation(len(names))
    before = np.cumsum(sizes[drawn]) - sizes[drawn]
    tested = drawn[before < share * len(codes)][: len(names) - 1]
    return np.isin(codes, tested)
