"""fedkd: federated knowledge distillation and federated continual learning, simulated on Flower and Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__"]
