"""Classifiers of the package `transformers`: local folders, configurations, and what is refused."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import fedkd
from fedkd.data.kinds import TEXT
from fedkd.errors import UserError
from fedkd.models.build import ModelFactory
from fedkd.plan.load import parse_scenario
from fedkd.scenario.sections import ClientGroup

pytestmark = pytest.mark.usefixtures("no_report")
SMALL = {
    "model_type": "bert",
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


def make(classes=3, vocabulary=30, adapter=None, **args):
    group = ClientGroup.model_validate({"model": "transformers", "args": args, "adapter": adapter})
    return ModelFactory(group, (9,), classes, kind=replace(TEXT, vocabulary=vocabulary)).make(seed=1)


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr("fedkd.plugins.packages.import_module", absent)
    with pytest.raises(UserError, match="model 'transformers' needs transformers; ") as caught:
        make(config=SMALL)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("args", [{}, {"path": "x", "config": SMALL}, {"config": SMALL, "dropout": 1.0}])
def test_wrong_arguments_are_one_line(args):
    with pytest.raises(UserError) as caught:
        make(**args)
    assert caught.value.key == "clients.args" and "\n" not in caught.value.message


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("transformers")

    def test_appending_padding_changes_no_logit(self):
        model = make(config=SMALL).eval().double()
        x = torch.tensor([[5, 7, 3, 0, 0, 0, 0, 0, 0], [29, 1, 1, 2, 9, 0, 0, 0, 0]])
        assert torch.allclose(model(x), model(x[:, :5]), atol=1e-12)
        assert model(torch.zeros(2, 9, dtype=torch.int64)).isfinite().all()

    def test_equal_seeds_are_equal_weights(self):
        first, second = make(config=SMALL).state_dict(), make(config=SMALL).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_a_folder_gives_its_weights_and_a_new_head(self, tmp_path):
        base = make(config=SMALL)
        base.inner.save_pretrained(tmp_path / "base")
        again = make(path=str(tmp_path / "base"))
        x = torch.randint(1, 30, (4, 9))
        assert torch.allclose(again.eval()(x), base.eval()(x), atol=1e-6)
        other = make(classes=5, path=str(tmp_path / "base"))
        kept = base.inner.base_model.state_dict()
        assert all(torch.equal(kept[name], w) for name, w in other.inner.base_model.state_dict().items())
        assert other(x).shape == (4, 5)

    def test_ids_of_padding_and_beginning_are_the_models_own(self):
        model = make(config=SMALL | {"pad_token_id": 1, "vocab_size": 30}, vocabulary=31).eval()
        assert (model.padding, model.shift) == (1, 1)
        inner = model.inner(input_ids=torch.tensor([[4, 0, 1]]), attention_mask=torch.tensor([[1, 1, 0]]))
        assert torch.allclose(model(torch.tensor([[5, 1, 0]])), inner.logits, atol=1e-6)

    def test_a_folder_may_be_the_base_of_an_adapter(self, tmp_path):
        make(config=SMALL).inner.save_pretrained(tmp_path / "base")
        model = make(path=str(tmp_path / "base"), adapter={"rank": 2})
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert any("lora_A" in name for name in trained)
        assert not any(name.endswith("embeddings.weight") for name in trained)

    def test_pickled_weights_are_not_read(self, tmp_path):
        make(config=SMALL).inner.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="pickled weights are not read"):
            make(path=str(tmp_path))

    def test_code_of_a_folder_is_not_run(self, tmp_path):
        make(config=SMALL).inner.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        names = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
        config |= {"model_type": "unheard", "auto_map": names}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(UserError) as caught:
            make(path=str(tmp_path))
        assert not (tmp_path / "ran").exists() and "\n" not in caught.value.message

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            ({"config": {"model_type": "unheard"}}, "config makes no classifier"),
            ({"config": SMALL | {"vocab_size": 9}}, "the model has 9 token ids, the data 30"),
            ({"config": SMALL | {"max_position_embeddings": 8}}, "the model takes 8 tokens, texts have 9"),
            ({"path": "no-such-folder"}, "no config.json in the folder"),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, args, told):
        with pytest.raises(UserError) as caught:
            make(**args)
        assert told in caught.value.message
        assert "\n" not in caught.value.message

    def test_a_run_with_a_bag_beside_it(self, tmp_path):
        partition, engine = {"scheme": "iid"}, {"kind": "inline"}
        data = {"dataset": "order", "clients": 2, "args": {"train": 200, "test": 50}, "partition": partition}
        clients = [{"model": "bag"}, {"model": "transformers", "args": {"config": SMALL}}]
        tables = {"name": "s", "rounds": 1, "data": data | {"transfer": {"size": 40}}, "clients": clients}
        result = fedkd.run(parse_scenario(tables | {"engine": engine}), out=tmp_path / "run")
        assert fedkd.load_client(result.folder, 1).probabilities(np.ones((3, 16), np.int64)).shape == (3, 2)
