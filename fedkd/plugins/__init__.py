"""Plug-ins: loading, hyper-parameters, and versions of packages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "loading": [
            "Registry",
            "contain_plugin",
            "forbid_os_exit",
            "import_plugins",
            "module_path",
            "plugin_call",
        ],
        "outline": ["Outline", "find_outline", "public_names"],
        "packages": ["MissingPackage", "Omissions", "install_hint", "package_versions", "require_package"],
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
