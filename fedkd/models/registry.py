"""The client models by name.

A factory is called as ``factory(input_shape, classes, **args)`` and returns an `nn.Module` that maps
``[B, *input_shape]`` to logits ``[B, classes]``. Another project's model is named ``"pkg.mod:factory"``.
"""

from __future__ import annotations

from fedkd.plugins import Registry

ESTIMATORS = ("random-forest", "gradient-boosting", "sgd")
"""Models that learn from guidance by weighted refitting."""
MODELS = Registry(
    "model",
    {
        "mlp": "fedkd.models.mlp:mlp",
        "lenet": "fedkd.models.lenet:lenet",
        "cnn": "fedkd.models.cnn:cnn",
        "resnet8": "fedkd.models.resnet:resnet8",
        "resnet20": "fedkd.models.resnet:resnet20",
        "random-forest": "fedkd.models.estimator:random_forest",
        "gradient-boosting": "fedkd.models.estimator:gradient_boosting",
        "sgd": "fedkd.models.estimator:sgd",
    },
    group="fedkd.models",
)
