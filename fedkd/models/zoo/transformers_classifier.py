"""Classifiers of the package `transformers`, from a local folder or with random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import UserError, described, refuse_if
from fedkd.models.zoo.classifier import check_dropout
from fedkd.plugins import require_package
from fedkd.storage import expand_path

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
MORE_DROPOUTS = ("dropout", "attention_dropout", "seq_classif_dropout", "activation_dropout")
DROPOUTS_OF_GPT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")


class SequenceClassifier(nn.Module):
    """Maps token ids ``[B, L]`` to logits ``[B, C]`` by a model of `transformers`.

    Padding is 0 in the data and `padding` in the model. The other ids are `shift` above the model's.
    """

    def __init__(self, inner: nn.Module, padding: int, shift: int) -> None:
        super().__init__()
        self.inner, self.padding, self.shift = inner, padding, shift

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; a text without tokens is one token of padding."""
        given = x != 0
        ids = torch.where(given, x - self.shift, self.padding)
        first = torch.arange(x.shape[1], device=x.device) == 0
        mask = given | (first & ~given.any(dim=1, keepdim=True))
        logits: Tensor = self.inner(input_ids=ids, attention_mask=mask.long()).logits
        return logits


def transformers_classifier(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 0,
    path: str = "",
    config: Mapping[str, Any] | None = None,
    dropout: float = 0.0,
) -> SequenceClassifier:
    """Return a sequence classifier of the package `transformers` (extra `transformers`).

    Weights come from the ``.safetensors`` files of a local folder; a head that is not there is drawn. Code in
    the folder is not run, pickled weights are not read, and nothing is downloaded.

    Args:
        vocabulary: Number of token ids, padding included; by default that of the data.
        path: Folder with ``config.json`` and ``.safetensors`` files, relative to the working folder.
        config: Instead of a folder, a configuration with a `model_type`, such as ``{ model_type = "bert",
            hidden_size = 64, … }``. Weights are random then.
        dropout: Probability of all dropout layers in training.
    """
    check_dropout(dropout)
    key = "clients.args"
    refuse_if(bool(path) == (config is not None), "must have either path or config", key)
    library = require_package("transformers", "model 'transformers'", "transformers")
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    rates = dict.fromkeys((*DROPOUTS, *MORE_DROPOUTS, *DROPOUTS_OF_GPT), dropout)
    auto = library.AutoModelForSequenceClassification
    try:
        if config is not None:
            sizes = {"vocab_size": vocabulary, "pad_token_id": 0} if vocabulary else {}
            made = library.AutoConfig.for_model(**{**sizes, **config, "num_labels": classes})
            padding, shift = _padding(made)
            _set(made, rates)
            _check_ids(made, vocabulary, shift, input_shape[0])
            return SequenceClassifier(auto.from_config(made), padding, shift)
        folder = _folder(path)
        local = {"local_files_only": True, "trust_remote_code": False}
        made = library.AutoConfig.from_pretrained(folder, num_labels=classes, **local)
        padding, shift = _padding(made)
        _set(made, rates)
        _check_ids(made, vocabulary, shift, input_shape[0])
        # Kernels would be downloaded.
        told = {"use_safetensors": True, "ignore_mismatched_sizes": True, "use_kernels": False}
        inner = auto.from_pretrained(folder, config=made, **told, **local)
    except UserError:
        raise
    except Exception as error:  # the package raises classes of many packages
        where = f"cannot make a classifier from {path}" if path else "config makes no classifier"
        raise UserError(f"{where}: {described(error)}", key=key) from error
    return SequenceClassifier(inner, padding, shift)


def _folder(path: str) -> Path:
    folder = expand_path(path, key="clients.args").absolute()
    refuse_if(
        not (folder / "config.json").is_file(), f"no config.json in the folder {folder}", "clients.args"
    )
    told = f"no .safetensors file in {folder}; pickled weights are not read"
    refuse_if(not any(folder.glob("*.safetensors")), told, "clients.args")
    return folder


def _padding(config: Any) -> tuple[int, int]:
    """Return the model's id of padding, and how far ids of the data lie above the model's."""
    if config.pad_token_id is None:
        config.pad_token_id = config.eos_token_id or 0
        return int(config.pad_token_id), 1
    return int(config.pad_token_id), int(config.pad_token_id != 0)


def _set(config: Any, rates: Mapping[str, float]) -> None:
    for name, value in rates.items():
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, value)


def _check_ids(config: Any, vocabulary: int, shift: int, length: int) -> None:
    most = getattr(config, "vocab_size", None)
    told = f"the model has {most} token ids, the data {vocabulary - shift}; use the tokenizer of the model"
    refuse_if(most is not None and vocabulary - shift > most, told, "clients.args")
    longest = getattr(config, "max_position_embeddings", None)
    told = f"the model takes {longest} tokens, texts have {length}: set data.args.tokenizer.length"
    refuse_if(longest is not None and length > longest, told, "clients.args")
