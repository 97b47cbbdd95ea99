"""Predictions and scores against numpy."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

from fedkd.models.fast.batch_last import Conv2d
from fedkd.models.zoo.lenet import lenet
from fedkd.training.device import limit_torch_threads
from fedkd.training.evaluate import (
    AT_ONCE,
    AT_ONCE_BATCH_LAST,
    predict_in_batches,
    predict_logits,
    score,
)
from fedkd.training.losses import cross_entropy


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def samples(count: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def test_scores_equal_numpys():
    model, (x, y) = net(), samples()
    labels = y.numpy()
    result = score(predict_logits(model, x, batch_size=5).numpy(), labels)
    z = predict_logits(model, x).numpy().astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(result.correct, z.argmax(axis=1) == labels)
    assert result.correct.dtype == np.bool_
    assert result.accuracy == (z.argmax(axis=1) == labels).mean()
    assert 0.0 < result.accuracy < 1.0
    assert result.loss == pytest.approx(-log_p[np.arange(len(labels)), labels].mean(), rel=1e-6)


def test_predictions_are_made_in_batches_in_evaluation_mode_and_repeat():
    model, (x, _) = net(), samples()
    sizes = []

    def hidden(batch):
        sizes.append(len(batch))
        return model[0](batch)

    torch.testing.assert_close(predict_in_batches(model, hidden, x, batch_size=5), model[0](x).detach())
    assert sizes == [5, 5, 5, 5, 3]
    first = predict_logits(model, x, batch_size=5)
    assert torch.equal(first, predict_logits(model, x, batch_size=5))
    torch.testing.assert_close(first, model.eval()(x), rtol=1e-5, atol=1e-6)


def test_the_batch_size_suits_the_model():
    for model, size in ((nn.Conv2d(1, 2, 1), AT_ONCE), (Conv2d(1, 2, 1), AT_ONCE_BATCH_LAST)):
        sizes: list[int] = []
        model.register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(len(inputs[0])))
        assert predict_logits(model, torch.zeros(size + 1, 1, 2, 2)).shape == (size + 1, 2, 2, 2)
        assert sizes == [size, 1]


def test_evaluation_restores_modes_and_keeps_statistics():
    model, (x, _) = net(), samples()
    model.train()
    model[1].eval()
    predict_logits(model, x)
    with pytest.raises(RuntimeError):
        predict_logits(model, torch.zeros(2, 5))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert model[1].num_batches_tracked == 0


def test_predictions_can_be_training_targets():
    model, (x, _) = net(), samples()
    targets = predict_logits(model, x)
    assert not targets.requires_grad
    (model(x) * targets).sum().backward()
    assert model[0].weight.grad is not None


def test_loss_is_the_training_loss_and_half_precision_comes_out_in_float32():
    model, (x, y) = nn.Linear(4, 3), samples()
    assert score(predict_logits(model, x).numpy(), y.numpy()).loss == pytest.approx(
        cross_entropy(model(x), y).item(), rel=1e-5
    )
    assert predict_logits(model.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_no_samples_have_no_scores():
    logits = predict_logits(net(), torch.zeros(0, 4))
    assert logits.shape == (0, 3)
    result = score(logits.numpy(), np.zeros(0, dtype=np.int64))
    assert math.isnan(result.accuracy) and math.isnan(result.loss)
    assert result.correct.shape == (0,)


@pytest.fixture
def threads(monkeypatch) -> set[int]:
    """Those in which a linear layer has predicted."""
    found, forward = set(), nn.Linear.forward

    def noted(self, x):
        found.add(threading.get_ident())
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", noted)
    return found


@pytest.mark.parametrize("batch_size", [None, 50])
def test_parallel_batches_equal_sequential_ones(batch_size, threads):
    model, x = lenet((1, 8, 8), 10).train(), torch.randn(700, 1, 8, 8)
    alone = predict_logits(model, x, batch_size)
    assert threads == {threading.get_ident()}
    together = predict_logits(model, x, batch_size, lanes=3)
    assert torch.equal(alone, together) and not together.requires_grad
    assert len(threads) > 1 and model.training


def test_parallel_batches_use_the_usual_number_of_threads(monkeypatch):
    found, forward = [], nn.Linear.forward

    def noted(self, x):
        found.extend(pool["num_threads"] for pool in threadpool_info() if "torch" in pool["filepath"])
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", noted)
    with limit_torch_threads(2):
        predict_logits(nn.Linear(4, 3), torch.randn(700, 4), lanes=3)
    assert found and set(found) == {2}


def test_unknown_modules_are_evaluated_in_one_thread(threads):
    class Other(nn.Linear):
        """A module of somebody else's."""

    predict_logits(Other(4, 3), torch.randn(700, 4), lanes=3)
    assert threads == {threading.get_ident()}
