"""The command `fedkd`: `main` parses the command line, `verbs` holds the verbs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, [], {"main": ["program"]})
