"""FedProto: prototypes by hand, the local loss with its gradient, and unequal features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient

from fedkd.errors import UserError
from fedkd.fusion.forms import check_feature_widths
from fedkd.fusion.prototypes.fedproto import FedProto
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator

COUNTS = np.array([[3, 2, 0], [1, 0, 0], [8, 5, 0]])  # nobody owns class 2
MEANS = numpy_generator(0, "test means").normal(0, 2, (3, 3, 4)).astype(np.float32) * (COUNTS > 0)[..., None]


def knowledge_of(means, counts, clients=None) -> Knowledge:
    clients = tuple(range(len(means))) if clients is None else clients
    return Knowledge(
        clients=clients,
        logits=None,
        samples=counts.sum(axis=1),
        label_counts=counts,
        payload={"prototypes": list(means)},
    )


def by_hand() -> np.ndarray:
    prototypes = np.zeros((3, 4))
    for label in range(2):
        owned = sum(int(COUNTS[n, label]) for n in range(3))
        for n in range(3):
            for k in range(4):
                prototypes[label, k] += int(COUNTS[n, label]) * float(MEANS[n, label, k]) / owned
    return prototypes


def test_prototypes_are_means_over_all_samples_of_the_federation() -> None:
    guidance = FedProto().fuse(knowledge_of(MEANS, COUNTS), {})
    assert_allclose(guidance.shared["prototypes"], by_hand(), rtol=1e-6)
    assert_array_equal(guidance.shared["owners"], [3, 2, 0])
    assert guidance.targets is None and guidance.shared["prototypes"].dtype == np.float32


def test_a_single_client_receives_its_own_prototypes() -> None:
    guidance = FedProto().fuse(knowledge_of(MEANS[:1], COUNTS[:1]), {})
    assert_allclose(guidance.shared["prototypes"], MEANS[0], rtol=1e-6)


def test_the_local_loss_and_gradient_equal_the_formula() -> None:
    guidance = FedProto().fuse(knowledge_of(MEANS, COUNTS), {})
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = FedProto(strength=0.1).local_loss(guidance.shared)(
        torch.zeros(3, 3), features, torch.tensor([1, 0, 2])
    )
    difference = features.detach().numpy() - by_hand()[[1, 0, 2]]
    difference[2] = 0.0  # nobody owns class 2
    assert loss.item() == pytest.approx(0.1 * (difference**2).sum() / 12, rel=1e-5)
    loss.backward()
    assert_allclose(features.grad, 0.1 * 2 * difference / 12, atol=1e-6)


def test_unequal_feature_widths_are_refused() -> None:
    means = [MEANS[0], np.zeros((3, 6), dtype=np.float32), MEANS[2]]
    with pytest.raises(UserError) as caught:
        FedProto().fuse(knowledge_of(means, COUNTS, clients=(1, 4, 6)), {})
    assert str(caught.value) == (
        "clients.model: 'fedproto' needs models with the same number of features,"
        " got 4 (client 1), 6 (client 4)"
    )
    check_feature_widths("fedproto", (1, 4), (6, 6))


def test_the_nearest_prototype_answers() -> None:
    guidance = FedProto().fuse(knowledge_of(MEANS, COUNTS), {}).shared
    features = numpy_generator(0, "features").normal(0, 2, (20, 4)).astype(np.float32)
    logits = FedProto(inference="prototypes").infer(features, guidance)
    for row, found in zip(features, logits, strict=True):
        squares = [sum((float(f) - p) ** 2 for f, p in zip(row, by_hand()[c], strict=True)) for c in (0, 1)]
        assert_allclose(found[:2], [-squares[0], -squares[1]], rtol=1e-5)
        assert found.argmax() == np.argmin(squares)
        assert found[2] < found[:2].min() and np.isfinite(found).all()  # nobody owns class 2


def test_a_prototype_is_assigned_to_its_class() -> None:
    counts = np.array([[3, 2, 1]])
    means = numpy_generator(1, "test means").normal(0, 2, (1, 3, 4)).astype(np.float32)
    guidance = FedProto().fuse(knowledge_of(means, counts), {}).shared
    assert_array_equal(FedProto().infer(means[0], guidance).argmax(axis=1), [0, 1, 2])


def test_the_model_answers_by_default() -> None:
    assert not FedProto().capabilities.infers_from_guidance
    assert FedProto(inference="prototypes").capabilities.infers_from_guidance


def test_an_upload_is_class_prototypes_and_counts() -> None:
    client = SmallClient(means={"features": MEANS[0]}, counts=COUNTS[0])
    upload = FedProto().upload(client)
    assert upload.keys() == {"prototypes", "label_counts"}
    assert_array_equal(upload["prototypes"], MEANS[0])
    assert FedProto().capabilities.needs == {"gradients", "features", "equal_features"}
    assert FedProto().capabilities.uses_local_loss and FedProto().capabilities.label_counts
