"""The client models by name.

A factory is called as ``factory(input_shape, classes, **args)`` and returns an `nn.Module` that maps
``[B, *input_shape]`` to logits ``[B, classes]``. Another project's model is named ``"pkg.mod:factory"``.
"""

from fedkd.plugins import Registry

ESTIMATORS = ("random-forest", "gradient-boosting", "sgd")
"""Models that learn from guidance by weighted refitting."""
REGRESSORS = {
    "random-forest": "fedkd.models.regressor:random_forest",
    "gradient-boosting": "fedkd.models.regressor:gradient_boosting",
    "sgd": "fedkd.models.regressor:sgd",
}
"""The same in regression."""
MODELS = Registry(
    "model",
    {
        "mlp": "fedkd.models.zoo.mlp:mlp",
        "lenet": "fedkd.models.zoo.lenet:lenet",
        "cnn": "fedkd.models.zoo.cnn:cnn",
        "resnet8": "fedkd.models.zoo.resnet:resnet8",
        "resnet20": "fedkd.models.zoo.resnet:resnet20",
        "bag": "fedkd.models.zoo.bag:bag",
        "textcnn": "fedkd.models.zoo.textcnn:textcnn",
        "cnn1d": "fedkd.models.zoo.cnn1d:cnn1d",
        "gru": "fedkd.models.zoo.gru:gru",
        "tiny-transformer": "fedkd.models.zoo.tiny_transformer:tiny_transformer",
        "transformers": "fedkd.models.zoo.transformers_classifier:transformers_classifier",
        "random-forest": "fedkd.models.estimator:random_forest",
        "gradient-boosting": "fedkd.models.estimator:gradient_boosting",
        "sgd": "fedkd.models.estimator:sgd",
    },
    group="fedkd.models",
)
MODEL_KINDS: dict[str, tuple[str, ...]] = {
    "mlp": ("image", "vector", "series"),
    **dict.fromkeys(("lenet", "cnn", "resnet8", "resnet20"), ("image",)),
    **dict.fromkeys(("bag", "textcnn", "tiny-transformer", "transformers"), ("text",)),
    "cnn1d": ("series",),
    "gru": ("text", "series"),
    **dict.fromkeys(ESTIMATORS, ("image", "vector", "series", "text")),
}
"""Kinds of samples that a model takes. A plug-in's factory may have them in an attribute `kinds`."""
