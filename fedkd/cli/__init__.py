"""The command `fedkd`: one function a verb, in `verbs`; `main` parses the command line."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, [], {"main": ["program"]})
