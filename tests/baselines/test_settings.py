"""The tree of settings: one place for each default, a range for each field, what is refused."""

import ast
import dataclasses
import importlib
import re
import typing
from collections import defaultdict
from pathlib import Path

import pytest

import ega_jax
from ega_jax.baselines.retrieval.settings import RetrievalSettings
from ega_jax.baselines.settings import Settings
from ega_jax.data.market.config import SIZE_NAMES
from ega_jax.errors import UserError
from ega_jax.setting import SYSTEM, WORKDIR, Rule, leaves
from ega_jax.systems import check_settings
from experiments.configs import market

ROOT = Path(ega_jax.__file__).parent
TREES = (Settings, RetrievalSettings)
# A market's own sizes, the smallest of `SIZES` by default: settings name a size, and no more.
OF_MARKET = ("num_sessions", "num_slots", "max_ads", "history_length")
OTHERS = {("MarketConfig", name) for name in OF_MARKET}


def groups(kind):
    """The classes of a tree and of its groups."""
    yield kind
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            yield from groups(type(field.default))


def of_settings():
    """Every class that a group inherits a field from."""
    return {base for tree in TREES for kind in groups(tree) for base in kind.__mro__}


def literal_defaults():
    """(class, field) -> the literal default that a class of the package states for a field."""
    found = {}
    for path in ROOT.rglob("*.py"):
        module = ".".join(("ega_jax", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith(
                ("Config", "Settings", "Levers", "Sizes", "Weights", "Origin")
            ):
                continue
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and (value := default_of(line.value)):
                    found[module, node.name, line.target.id] = value
    return found


def default_of(value):
    """The source of a default if it is a literal, bare or in `setting(...)`."""
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "setting" and value.args:
        value = value.args[0]
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError):
        return None
    return value and ast.unparse(value)


def quoted():
    """(class, field) of the defaults that a setting has by `same_as`."""
    calls = (node for path in ROOT.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    return {
        (call.args[0].id, call.args[1].value)
        for call in calls
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "same_as"
    }


def test_each_default_stands_in_one_place():
    """A class states a default only for its own groups, and restates none that it inherits."""
    inherited, sources, stated = of_settings(), quoted(), defaultdict(set)
    names = {leaf.name.rpartition(".")[2] for tree in TREES for leaf in leaves(tree())}
    for (module, kind, name), default in literal_defaults().items():
        if name not in names or (kind, name) in OTHERS | sources:
            continue
        found = getattr(importlib.import_module(module), kind)
        assert found in inherited, f"{kind}.{name} states {default} beside the settings"
        stated[found].add(name)
        bases = [b for b in found.__mro__[1:] if name in getattr(b, "__dataclass_fields__", {})]
        assert getattr(found, name) not in [getattr(b, name) for b in bases[:1]], f"{kind}.{name}"
    assert len(stated) > 20, "the test looks at the right classes"


def test_every_number_has_a_range_and_every_field_a_type():
    for tree in TREES:
        for kind in groups(tree):
            hints = typing.get_type_hints(kind)
            assert all(field.name in hints for field in dataclasses.fields(kind))
        for leaf in leaves(tree()):
            values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
            if any(type(value) in (int, float) for value in values):
                assert leaf.rule not in (Rule(), None), leaf.name
            elif leaf.name not in FREE_TEXT and not isinstance(leaf.value, bool):
                assert leaf.rule.choices is not None, leaf.name


FREE_TEXT = ("name", "data.path", "data.market.sequences", "auction.system")


def test_what_binds_a_workdir_and_what_a_system():
    in_workdir, in_system = (set(Settings().free(place)) for place in (WORKDIR, SYSTEM))
    of_phases = {"reward", "allocation", "alignment", "retraining", "payment", "auction"}
    assert set(Settings.groups(SYSTEM)) == of_phases | {"one_rec", "cascade"}
    assert {"data.path", "training.log_every", "evaluation.split", "auction.rule"} <= in_system
    assert {"allocation.beta", "auction.system", "cascade.hstu.width"} <= in_workdir - in_system
    assert not {"seed", "generator.width", "training.num_steps", "tokenizer.kind"} & in_workdir
    assert "data.path" not in RetrievalSettings().free(WORKDIR), "no tokens bind it there"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training.num_steps", 0, "config.training.num_steps is 0: it must be at least 1"),
        ("alignment.num_steps", -1, "config.alignment.num_steps is -1: it must be at least 0"),
        ("auction.num_sessions", 0, "config.auction.num_sessions is 0: it must be at least 1"),
        ("tokenizer.num_codes", 1, "config.tokenizer.num_codes is 1: it must be at least 2"),
        ("optimizer.learning_rate", float("nan"), "learning_rate is nan: it must be above 0"),
        ("optimizer.learning_rate", float("inf"), "learning_rate is inf: it must be above 0"),
        ("allocation.reserve", -0.1, "config.allocation.reserve is -0.1: it must be at least 0"),
        ("reward.dropout_rate", 1.0, "reward.dropout_rate is 1.0: it must be a share below 1"),
        ("payment.probes", (0.0, -1.0), "config.payment.probes is -1.0: it must be at least 0"),
        ("payment.heads", ("rate", "vcg"), "payment.heads: 'vcg' is not one of rate, threshold"),
        ("data.market.size", "huge", "market.size: 'huge' is not one of " + ", ".join(SIZE_NAMES)),
        ("tokenizer.kind", "vq", "config.tokenizer.kind: 'vq' is not one of rqvae, kmeans"),
        ("optimizer.schedule", "linear", "optimizer.schedule: 'linear' is not one of constant, "),
        ("auction.rule", "vcg", "config.auction.rule: 'vcg' is not one of first_price, gsp, "),
        ("generator.num_heads", 3, "generator.num_heads: 3 heads do not divide a width of 64"),
        (
            "cascade.cga.num_heads",
            3,
            "config.cascade.cga.num_heads: 3 heads do not divide a width of 32",
        ),
        (
            "optimizer.warmup_steps",
            600,
            "config.optimizer.warmup_steps: 600 warm-up steps leave none of 600 steps",
        ),
        (
            "cascade.hstu.warmup_steps",
            400,
            "hstu.warmup_steps: 400 warm-up steps leave none of 400 steps",
        ),
        ("evaluation.num_beams", 9, "config.evaluation.num_beams is 9: it must be at least 10"),
        ("payment.probes", (1.0, 0.5), "payment.probes: (1.0, 0.5) do not rise"),
        ("payment.refinements", -1, "config.payment.refinements is -1: it must be at least 0"),
        ("payment.heads", ("rate",), "auction.rule: threshold is no head of config.payment.heads"),
        ("payment.lagrangian.sampled", 11, "lagrangian.sampled: 11 of 10 reports"),
        ("data.market.num_slots", 1, "config.data.market: num_slots must be at least 2, got 1"),
        ("data.market.num_slots", 40, "must each be at least num_slots (40)"),
        ("data.fractions", (0.5, 0.4, 0.1), "fractions: (0.5, 0.4, 0.1) leave no test sessions"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        market.settings("tiny").changed({field: value})


def test_a_rule_of_probed_bids_needs_some():
    with pytest.raises(UserError, match=r"auction\.rule: myerson_probed needs bids in config\.pay"):
        market.settings("tiny").changed({"auction.rule": "myerson_probed", "payment.probes": ()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auction.system": "vcg"}, "config.auction.system: 'vcg' is not one of mca, gr, ega"),
        ({"auction.system": "gr"}, "config.allocation.bid_free: GR generates without bids"),
        (
            {"auction.system": "mca", "alignment.one_stage": True},
            "config.alignment.one_stage: EGA alone trains in one stage",
        ),
        (
            {"alignment.one_stage": True, "alignment.num_steps": 0},
            "config.alignment.one_stage: the requests of config.alignment.num_steps and batch_size "
            "would be 0 rows of each of the 600 batches",
        ),
        (
            {"alignment.one_stage": True, "alignment.num_steps": 10_000},
            "a batch has 1 to",
        ),
        (
            {"auction.system": "mca", "data.market.num_slots": 4},
            "config.cascade.cross_dqn.screen: screens of 5 slots do not fill 4",
        ),
    ],
)
def test_a_kind_of_system_refuses_what_it_cannot_take(changes, message):
    settings = market.settings("tiny").changed(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(settings)
