"""The zoo of client models and how a scenario's client groups become models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "adapter": ["adapters_of", "frozen_base"],
        "build": [
            "ModelFactory",
            "blank_inputs",
            "build_group_models",
            "build_model",
            "count_parameters",
            "forward_flops",
        ],
        "client_mix": ["architecture_names", "client_models"],
        "estimator": ["Estimator", "EstimatorModel", "IncrementalModel", "client_estimator"],
        "evaluation_mode": ["evaluation_mode"],
        "fast.batch_last": ["Conv2d", "Flatten", "MaxPool2d", "use_torch_kernels"],
        "fast.kernel_mode": ["KernelMode", "is_transformed", "kernel_schema"],
        "registry": ["ESTIMATORS", "MODELS"],
        "regressor": ["RegressorModel"],
        "zoo.classifier": ["Classifier"],
        "zoo.generator": ["Generator"],
    },
)
