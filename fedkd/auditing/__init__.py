"""Attacks of a curious server on the uploads of a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [], {"audit": ["audit"], "result": ["AuditResult"]}
)
