"""Strategies by name, and the messages that a wrong name, key, value or plug-in gets."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from fedkd.cli import catalogue
from fedkd.errors import UserError
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.registry import STRATEGIES, make_strategy, strategy_hyperparameters
from fedkd.fusion.strategy import FusionStrategy

PLUGIN = """
    from __future__ import annotations
    from dataclasses import dataclass
    from typing import Annotated, ClassVar
    from pydantic import Field
    from fedkd.fusion.capabilities import Capabilities
    from fedkd.fusion.kinds import Kind
    from fedkd.fusion.strategy import FusionStrategy, Guidance

    @dataclass(frozen=True)
    class First(FusionStrategy):
        name: ClassVar[str] = "first"
        sharpness: Annotated[float, Field(gt=0, description="How sharp.")] = 2.0
        rounds: int = 3

        def fuse(self, knowledge, memory):
            return Guidance(targets=knowledge.logits[0])

        def loss(self, student_logits, targets):
            return (student_logits - targets).abs().mean()

    class NotADataclass(First.__base__):
        name = "x"
        def fuse(self, knowledge, memory): ...
        def loss(self, student_logits, targets): ...

    @dataclass(frozen=True)
    class Unfused(FusionStrategy):
        name: ClassVar[str] = "unfused"
        def loss(self, student_logits, targets): ...

    @dataclass(frozen=True)
    class Nameless(FusionStrategy):
        def fuse(self, knowledge, memory): ...
        def loss(self, student_logits, targets): ...

    @dataclass(frozen=True)
    class Lossless(FusionStrategy):
        name: ClassVar[str] = "lossless"
        def fuse(self, knowledge, memory): ...

    @dataclass(frozen=True)
    class Loader(Lossless):
        name: ClassVar[str] = "loader"
        def apply(self, client, guidance): ...

    @dataclass(frozen=True)
    class Local(Lossless):
        name: ClassVar[str] = "local_teacher"
        capabilities: ClassVar[Capabilities] = Capabilities(uses_local_loss=True)

    @dataclass(frozen=True)
    class Mute(Local):
        name: ClassVar[str] = "mute"
        capabilities: ClassVar[Capabilities] = Capabilities(uses_local_loss=True, infers_from_guidance=True)

    @dataclass(frozen=True)
    class Silent(Lossless):
        name: ClassVar[str] = "silent"
        capabilities: ClassVar[Capabilities] = Capabilities(sends="nothing")

    @dataclass(frozen=True)
    class Sociable(First):
        name: ClassVar[str] = "sociable"
        capabilities: ClassVar[Capabilities] = Capabilities(pools=True)

    @dataclass(frozen=True)
    class TwoLogits(First):
        name: ClassVar[str] = "two_logits"
        capabilities: ClassVar[Capabilities] = Capabilities(
            kinds={"before": Kind.TRANSFER_LOGITS, "after": Kind.TRANSFER_LOGITS}
        )

    @dataclass(frozen=True)
    class Odd(First):
        name: ClassVar[str] = "odd"
        network: NotADataclass = None

    @dataclass(frozen=True)
    class Stranger:
        beta: float = 1.0
"""


@pytest.fixture
def plugins(tmp_path: Path) -> list[Path]:
    (tmp_path / "my_strategies.py").write_text(dedent(PLUGIN), encoding="utf-8")
    return [tmp_path]


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_is_built_from_its_defaults_and_documented(name) -> None:
    strategy = make_strategy(name, {})
    assert isinstance(strategy, FusionStrategy) and strategy.name == name
    for parameter in strategy_hyperparameters(name):
        assert len(parameter.description) > 30 and "\n" not in parameter.description
        assert parameter.type and parameter.default == getattr(strategy, parameter.name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.beta = 3.0


def test_resolved_hyperparameters_build_the_same_strategy() -> None:
    strategy = make_strategy("knfu", {"beta": 3, "neighbours": 2, "divergence": "js"})
    assert strategy == KnFu(beta=3.0, neighbours=2, divergence="js")
    assert make_strategy("knfu", dataclasses.asdict(strategy)) == strategy


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"betta": 1.0}, "fusion.betta: unknown key; did you mean 'beta'?"),
        ({"beta": -1}, "fusion.beta: must be ≥ 0, got -1"),
        ({"beta": "big"}, "fusion.beta: must be a number, got 'big'"),
        ({"beta": float("inf")}, "fusion.beta: must be a finite number, got inf"),
        ({"temperature": 0}, "fusion.temperature: must be ≥ 1e-06, got 0"),
        ({"neighbours": 1.5}, "fusion.neighbours: must be an integer, got 1.5"),
        ({"stale_decay": 1.5}, "fusion.stale_decay: must be ≤ 1, got 1.5"),
        ({"threshold": 3}, "fusion.threshold: must be ≤ 1 as a quantile, got 3"),
        ({"per_class": "perhaps"}, "fusion.per_class: must be true or false, got 'perhaps'"),
        (
            {"distribution": "sotf"},
            "fusion.distribution: must be one of 'soft', 'hard', 'shared', 'calibrated', got 'sotf'",
        ),
    ],
)
def test_wrong_hyperparameters_are_refused(hyperparameters, message) -> None:
    with pytest.raises(UserError) as caught:
        make_strategy("knfu", hyperparameters)
    assert str(caught.value) == message


def test_deviations_from_papers_are_named_in_list_and_docs() -> None:
    noted = {name: STRATEGIES.load(name) for name in STRATEGIES.builtin if STRATEGIES.load(name).source_note}
    assert noted.keys() >= {"mhat", "fedhkt", "comd", "mst", "dlf", "scalearn", "masters", "path"}
    listed, told = "\n".join(catalogue.strategies()), "\n".join(catalogue.strategy_details())
    docs = Path(__file__).parents[2] / "docs" / "strategies.md"
    section = (
        docs.read_text(encoding="utf-8").partition("### Strategies after a paper\n")[2].partition("\n#")[0]
    )
    for name, strategy in noted.items():
        assert f"  {name}* " in listed and strategy.source_note in told and f"| `{name}` |" in section
        assert not strategy.paper or strategy.paper.startswith("after ")
    for name in ("mhat", "fedhkt"):
        assert "abstract" in (inspect.getdoc(noted[name]) or "").partition("\n\n")[0]


def test_a_strategy_without_hyperparameters_refuses_them() -> None:
    with pytest.raises(UserError, match=r"fusion\.beta: unknown key; nothing is allowed here"):
        make_strategy("local", {"beta": 1})


def test_unknown_strategy_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^fusion\.strategy: .*did you mean 'knfu'\?"):
        make_strategy("knuf", {})


@pytest.mark.parametrize(
    "name", ["fedbn", "FedBN", "fed-nova", "FedDyn", "FedOpt", "perfedavg", "FedDistill"]
)
def test_an_unavailable_method_is_refused_with_related_ones(name):
    with pytest.raises(UserError) as caught:
        make_strategy(name, {})
    told = caught.value.message
    assert told.startswith(f"no fusion strategy named '{name}'; ") and "did you mean" not in told
    for relative in set(re.findall("'([a-z]+)'", told.split(";")[1])) - {"training"}:
        assert ":" in STRATEGIES.canonical(relative) or relative in STRATEGIES.builtin


def test_a_plain_dataclass_is_a_strategy(plugins) -> None:
    strategy = make_strategy("my_strategies:First", {"sharpness": 5}, plugins)
    assert strategy.sharpness == 5.0 and strategy.capabilities.sends == "logits"
    assert strategy.capabilities.stale_decay is None and strategy.capabilities.label_counts is False
    parameters = strategy_hyperparameters("my_strategies:First", plugins)
    assert parameters == [("sharpness", 2.0, "How sharp.", "float > 0"), ("rounds", 3, "", "int")]


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("First", {"sharpness": 0}, r"fusion\.sharpness: must be > 0, got 0"),
        ("First", {"sharpnes": 1}, r"fusion\.sharpnes: unknown key; did you mean 'sharpness'\?"),
        ("First", {"rounds": "three"}, r"fusion\.rounds: must be an integer, got 'three'"),
        ("NotADataclass", {}, r"fusion\.strategy: 'my_strategies:NotADataclass' is not a dataclass"),
        ("Unfused", {}, r"fusion\.strategy: 'my_strategies:Unfused' does not define `fuse`"),
        ("Lossless", {}, r"fusion\.strategy: 'my_strategies:Lossless' does not define `loss`"),
        (
            "Mute",
            {},
            r"fusion\.strategy: 'my_strategies:Mute' answers evaluations from guidance, but .* `infer`",
        ),
        ("Sociable", {}, r"fusion\.strategy: .* it must send nothing"),
        ("TwoLogits", {}, r"fusion\.strategy: .* two arrays of one kind .* takes one"),
        ("Nameless", {}, r"fusion\.strategy: 'my_strategies:Nameless' has no `name`"),
        ("Stranger", {}, r"fusion\.strategy: .* is not a class derived from .*FusionStrategy"),
        ("Odd", {}, r"fusion\.strategy: 'my_strategies:Odd': its hyper-parameters cannot be checked: "),
        ("Frist", {}, r"fusion\.strategy: .*did you mean 'First'\?"),
    ],
)
def test_wrong_plug_ins_are_refused(plugins, name, hyperparameters, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_strategy(f"my_strategies:{name}", hyperparameters, plugins)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Loader", "Local", "Silent"])
def test_only_distilling_strategies_need_a_loss(plugins, name) -> None:
    strategy = make_strategy(f"my_strategies:{name}", {}, plugins)
    with pytest.raises(NotImplementedError, match=f"'{strategy.name}' does not define `loss`"):
        strategy.loss(None, None)


def test_types_are_described_in_words() -> None:
    types = {parameter.name: parameter.type for parameter in strategy_hyperparameters("knfu")}
    assert types["beta"] == "float ≥ 0"
    assert types["neighbours"] == "int ≥ 0 or absent"
    assert types["threshold_kind"] == '"quantile" | "median"'
    assert types["distribution_momentum"] == "float ≥ 0 and < 1"


def test_the_registry_does_not_import_torch() -> None:
    code = (
        "import sys; from fedkd.fusion.registry import make_strategy, STRATEGIES; "
        "[make_strategy(name, {}) for name in STRATEGIES.names()]; "
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules or 'flwr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
