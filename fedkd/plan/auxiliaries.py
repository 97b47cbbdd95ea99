"""Make the auxiliary networks that a strategy declares, for one client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedkd.errors import UserError
from fedkd.fusion import OWN_NETWORK, FusionStrategy, aux_networks_of
from fedkd.models import ModelFactory, blank_inputs, build_model, evaluation_mode
from fedkd.plugins import plugin_call
from fedkd.randomness import derive_seed, seeded_torch
from fedkd.scenario import ClientGroup


def make_auxiliaries(
    strategy: FusionStrategy, factory: ModelFactory, model: nn.Module, seed: int, client: int
) -> dict[str, nn.Module]:
    """Return a client's initial auxiliary networks, on the CPU."""
    networks: dict[str, nn.Module] = {OWN_NETWORK: model}
    for name, auxiliary in aux_networks_of(strategy).aux_networks().items():
        own = derive_seed(seed, f"initial-weights-{name}", client=client)
        drawn = derive_seed(seed, "initial-weights") if auxiliary.start == "shared" else own
        when = f" in making its '{name}'"
        with plugin_call(f"'{strategy.name}'", "fusion.strategy", when), seeded_torch(drawn):
            made = auxiliary.make(_Maker(strategy, factory, networks, drawn))
        if name == OWN_NETWORK or not isinstance(made, nn.Module):
            told = f"'{strategy.name}' made a {type(made).__name__} as '{name}'; must be a torch.nn.Module"
            raise UserError(f"{told} with a name other than '{OWN_NETWORK}'", key="fusion.strategy")
        networks[name] = made.to(device="cpu", dtype=torch.float32).train()
    return {name: network for name, network in networks.items() if name != OWN_NETWORK}


@dataclass(frozen=True, eq=False)
class _Maker:
    """Implements `fedkd.fusion.auxiliary.Maker` for one network of one client."""

    strategy: FusionStrategy
    factory: ModelFactory
    networks: Mapping[str, nn.Module]
    seed: int

    @property
    def classes(self) -> int:
        return self.factory.outputs

    def width(self, network: str = OWN_NETWORK) -> int:
        asked: Any = self.networks[network]
        _check_features(asked, f"'{self.strategy.name}' reads features of '{network}'", "clients.model")
        # This forward pass must not change the draws of the next network.
        with seeded_torch(self.seed), evaluation_mode(asked):
            inputs = blank_inputs(2, self.factory.input_shape, self.factory.input_dtype)
            return int(asked.features(inputs.to(next(asked.parameters()).device)).flatten(1).shape[1])

    def like_own(self) -> nn.Module:
        made = self.factory.make(self.seed)
        assert isinstance(made, nn.Module)
        return made

    def shared_model(self, *, with_features: bool = False) -> nn.Module:
        networks, factory = aux_networks_of(self.strategy), self.factory
        group = ClientGroup(model=networks.shared_model or "", args=networks.shared_arguments)
        shape, kind = factory.input_shape, factory.kind
        options: dict[str, Any] = {"plugin_path": factory.plugin_path, "kind": kind}
        try:
            made = build_model(group, shape, factory.outputs, seed=self.seed, **options)
        except UserError as error:
            key = (error.key or "clients.model").replace("clients.", "fusion.shared_", 1)
            raise UserError(error.message, key=key, file=error.file) from error
        if with_features:
            _check_features(made, f"'{self.strategy.name}' reads its features", "fusion.shared_model")
        return made


def _check_features(network: Any, why: str, key: str) -> None:
    if not (hasattr(network, "features") and hasattr(network, "head")):
        raise UserError(f"{why}; it has no `features` and `head`", key=key)
