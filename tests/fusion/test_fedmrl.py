"""FedMRL: the nested representation, its loss and its answers by hand, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_steps import batch_of, cross_entropy_by_hand, features_by_hand, small_model
from numpy.testing import assert_allclose
from several_networks import SeveralNetworks, step
from torch import nn

from fedkd.errors import UserError
from fedkd.fusion.two_models.fedmrl import PROJECTION, FedMRL
from fedkd.fusion.two_models.shared_model import SHARED_NETWORK


def client_of() -> SeveralNetworks:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        projection = nn.Linear(5, 3).double()
    return SeveralNetworks(
        small_model(1), **{SHARED_NETWORK: small_model(2, width=2), PROJECTION: projection}
    )


def by_hand(client: SeveralNetworks, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the own head and the shared one say."""
    own, shared, projection = (client.weights(of) for of in ("model", SHARED_NETWORK, PROJECTION))
    both = np.concatenate([features_by_hand(shared, x), features_by_hand(own, x)], axis=1)
    r = both @ projection["weight"].T + projection["bias"]
    return (
        r @ own["head.weight"].T + own["head.bias"],
        r[:, :2] @ shared["head.weight"].T + shared["head.bias"],
    )


def test_both_heads_read_the_representation():
    client, batch = client_of(), batch_of(small_model(1))
    own, shared = by_hand(client, batch.inputs.numpy())
    wanted = sum(cross_entropy_by_hand(logits, batch.labels.numpy()) for logits in (own, shared))
    assert step(FedMRL(), client) == pytest.approx(wanted, rel=1e-6)


def test_one_step_descends_on_all_three_parts():
    client, strategy = client_of(), FedMRL()
    before = {of: client.weights(of) for of in client.networks}
    losses = [step(strategy, client) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    for of, weights in before.items():
        assert any(not np.array_equal(client.weights(of)[name], weights[name]) for name in weights)


def test_the_private_head_answers_from_both_features():
    client, x = client_of(), batch_of(small_model(1)).inputs
    answer = FedMRL().predictor(client)(x)
    assert_allclose(answer.detach().numpy(), by_hand(client, x.numpy())[0], rtol=1e-6)


def test_a_shared_model_wider_than_the_private_one_is_refused():
    class Wide:
        def width(self, network: str = "model") -> int:
            return 8 if network == SHARED_NETWORK else 4

    with pytest.raises(UserError, match="at most as wide as every client's, 4, got 8"):
        FedMRL().aux_networks()[PROJECTION].make(Wide())
