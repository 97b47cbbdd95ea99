"""Devices, shared read-only arrays and memory layout."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.errors import UserError
from fedkd.training.device import as_tensor, prepare_inputs, prepare_model, resolve_device


def test_devices_are_selected_by_name(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="torch sees no GPU") as caught:
        resolve_device("cuda")
    assert caught.value.key == "engine.device"
    with pytest.raises(UserError, match="must be auto, cpu or cuda, got 'gpu'"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 4, 4)])
def test_read_only_arrays_are_shared_without_a_warning(shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = prepare_inputs(array[2:5], "cpu")
    assert tensor.data_ptr() == array[2:5].ctypes.data
    np.testing.assert_array_equal(tensor.numpy(), array[2:5])


def test_the_warning_filter_hides_no_other_warning():
    before = list(warnings.filters)
    as_tensor(np.zeros(3))
    assert warnings.filters == before


def test_only_image_models_change_layout():
    convolutional = prepare_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)), "cpu")
    assert convolutional[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not convolutional[0].weight.is_contiguous()
    dense = nn.Linear(4, 2)
    weight = dense.weight.detach().clone()
    assert prepare_model(dense, "cpu") is dense
    assert torch.equal(dense.weight, weight)
    assert dense.weight.is_contiguous()
