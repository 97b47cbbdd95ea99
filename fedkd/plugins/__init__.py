"""Users' own code: how it is found, which hyper-parameters it declares, which versions run it.

Start with `loading`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "loading": ["Registry", "calling", "contained", "import_plugins", "module_file", "no_sudden_end"],
        "packages": ["MissingPackage", "Omissions", "how_to_install", "require", "versions"],
        "schema": [
            "HyperParameter",
            "build_part",
            "hyperparameter_names",
            "hyperparameters",
            "hyperparameters_of",
            "load_part",
        ],
        "validation_errors": ["explain_error", "show_value"],
    },
)
