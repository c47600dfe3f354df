"""One call from requests to slates, creatives and prices."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ega_jax.auction.counterfactuals import Elsewhere, look_elsewhere, struck_out
from ega_jax.auction.ega import AllocationConfig, Models
from ega_jax.auction.pricing import RULES, PricingConfig, prices
from ega_jax.auction.system import (
    Allocation,
    Levers,
    Menu,
    Offer,
    SystemConfig,
    SystemModels,
    allocate,
    check_levers,
    prepare,
)
from ega_jax.explanation import Explanation, explain
from ega_jax.generation.generator import GeneratorConfig
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.training.checkpoints import read_metadata, read_tree, save_tree
from ega_jax.training.mesh import map_looping, split_rows
from ega_jax.types import LARGEST, Catalogue, Params, Request, Slate, is_amount

TRUTHFUL = "truthful"  # A bid-free menu with Clarke's prices: no lie can pay.
_SHAPED_AS = {"is_ad": "item", "bid": "item", "history_creative": "history_poi"}
_CLARKE = RULES.index("clarke")


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """A trained auction: deterministic, batched, compiled once per shape of request.

    A batch is split over this host's devices, as many as share it evenly.

    Attributes:
      models: of a system: for EGA generator, reward model, items.
      networks: parameters of the payment network, by head.
      config: its sizes.
      pricing: sizes of the payment network and of what it sees.
      levers: default run-time settings.
      rule: default payment rule, one of `choices`.
    """

    models: SystemModels
    networks: dict[str, Params]
    config: SystemConfig
    pricing: PricingConfig
    levers: Levers
    rule: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The payment rules that it can serve with."""
        return (*self.pricing.rules, TRUTHFUL)

    def allocate(self, request: Request, rule: str | None = None, **levers: float) -> Slate:
        """Chooses and prices a slate for each request.

        Args:
          request: a batch of requests; of histories, the last T behaviours are read.
          rule: payment rule instead of the default, one of `choices`.
          **levers: fields of `Levers` instead of the defaults; none of them recompiles.

        Returns:
          The slates; a click's price is between 0 and the bid, and 0 for organic items.

        Raises:
          ValueError: a request breaks a rule; the message names request and candidate.
        """
        request = self._checked(request)
        number, settings = self._settings(rule, levers)
        return _serve(
            self.models, self.networks, self.config, self.pricing, request, settings, number
        )

    def explain(
        self, request: Request, row: int = 0, rule: str | None = None, **levers: float
    ) -> Explanation:
        """Explains the slate of one request of a batch; arguments and errors as `allocate`.

        `explain(...).to_dict()` is plain data, `explain(...).plot()` a figure.

        Raises:
          TypeError: the system has no generator.
        """
        if not isinstance(self.models, Models):
            raise TypeError(f"{type(self.models).__name__} has no generator to explain")
        request = self._checked(request)
        _, settings = self._settings(rule, levers)
        if not 0 <= row < len(request.item):
            raise ValueError(f"row {row} is outside of a batch of {len(request.item)}")
        single = jax.tree.map(lambda x: jnp.asarray(x[row]), request)
        return explain(self.models, self.networks, self.config, self.pricing, settings, single)

    def _checked(self, request: Request) -> Request:
        return checked(request, self.models.items.catalogue, self.config.reward.history_length)

    def _settings(self, rule: str | None, changes: Mapping[str, Any]) -> tuple[jax.Array, Levers]:
        """The rule's number and the levers of one call."""
        rule = self.rule if rule is None else rule
        if rule not in self.choices:
            raise ValueError(f"payment rule {rule!r} is not one of {', '.join(self.choices)}")
        if rule == TRUTHFUL:
            if not changes.get("bid_free", True):
                raise ValueError("the truthful mode is bid-free: leave bid_free out")
            settings = check_levers(self.levers, {**changes, "bid_free": True})
            if settings.reserve > 0:  # A slate's price is no longer Clarke's, and lies may pay.
                raise ValueError(
                    f"the truthful mode has no reserve, and it is {settings.reserve}: set reserve=0"
                )
            return jnp.int32(_CLARKE), settings
        return jnp.int32(self.pricing.rules.index(rule)), check_levers(self.levers, changes)

    def save(self, folder: str | os.PathLike) -> None:
        """Saves everything that `restore` needs as one folder.

        Raises:
          TypeError: it is not EGA's; other systems are restored from their phases' checkpoints.
        """
        models = self.models
        if type(models) is not Models:
            raise TypeError(f"a mechanism of {type(models).__name__} cannot be saved as EGA's")
        tree = {
            "generator": models.generator,
            "reward": models.reward,
            "networks": self.networks,
            "items": vars(models.items) | {"catalogue": vars(models.items.catalogue)},
            "levers": vars(self.levers),
        }
        metadata = {
            "config": dataclasses.asdict(self.config),
            "pricing": dataclasses.asdict(self.pricing),
            "rule": self.rule,
        }
        kept = {name: part for name, part in tree.items() if part}  # There may be no networks.
        save_tree(folder, jax.tree.map(jnp.asarray, kept), metadata)

    @classmethod
    def restore(cls, workdir: str | os.PathLike, system: str = "ega") -> "Mechanism":
        """Restores a trained mechanism; neither dataset nor tokenizer is needed.

        Args:
          workdir: where `experiments.auction_align` has trained it.
          system: which of the workdir's systems.

        Raises:
          FileNotFoundError: there is none.
        """
        folder = mechanism_folder(workdir, system)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{workdir} holds no mechanism {system!r}: run experiments.auction_align, which "
                "saves that of EGA, first"
            )
        tree, metadata = read_tree(folder), read_metadata(folder)
        items = tree["items"] | {"catalogue": Catalogue(**tree["items"]["catalogue"])}
        config = metadata["config"]
        parts = {
            "generator": GeneratorConfig(**config["generator"]),
            "reward": RewardConfig(**config["reward"]),
        }
        return cls(
            models=Models(reward=tree["reward"], items=Items(**items), generator=tree["generator"]),
            networks=tree.get("networks", {}),
            config=AllocationConfig(**config | parts),
            pricing=PricingConfig(**{k: tuple(v) for k, v in metadata["pricing"].items()}),
            levers=Levers(**tree["levers"]),
            rule=metadata["rule"],
        )


def mechanism_folder(workdir: str | os.PathLike, system: str) -> Path:
    """Where a system's mechanism is saved."""
    return Path(workdir).expanduser().absolute() / "systems" / system / "mechanism"


@functools.partial(jax.jit, static_argnames=("config", "pricing"))
def _serve(
    models: SystemModels,
    networks: dict[str, Params],
    config: SystemConfig,
    pricing: PricingConfig,
    request: Request,
    levers: Levers,
    rule: jax.Array,
) -> Slate:
    """Slates of a batch of requests, with the prices of one rule."""
    # Only the network's price and Clarke's need to know what happens elsewhere; of a menu that is
    # free of bids, Clarke's needs the menu alone.
    is_needed = (rule > _CLARKE) | ((rule == _CLARKE) & ~jnp.asarray(levers.bid_free))

    def slates(request: Request) -> Slate:
        offer, allocation, menu = jax.vmap(found)(request)

        def strike_from_menu(_):
            strike = functools.partial(struck_out, levers=levers)
            without = jax.vmap(strike)(menu, request.bid, allocation.candidate)
            at_probes = jnp.zeros((*without.shape, len(pricing.probes)), without.dtype)
            return Elsewhere(without=without, bid=at_probes, clicks=at_probes)

        def search_again(_):
            search = functools.partial(look_elsewhere, models, config, pricing.probes, levers)
            requests = offer, request.bid, allocation.candidate, menu
            return map_looping(lambda x: search(*x)[0], requests)

        elsewhere = lax.cond(is_needed, search_again, strike_from_menu, None)
        price = jax.vmap(functools.partial(prices, networks, pricing, levers))(
            offer, request.bid, allocation, menu, elsewhere
        )
        return Slate(
            items=allocation.item,
            creatives=allocation.creative,
            is_ad=allocation.is_ad,
            price_per_click=price[:, rule],
            pctr=allocation.prediction.click_poi,
            pctr_image=allocation.prediction.click_image,
        )

    def found(request: Request) -> tuple[Offer, Allocation, Menu]:
        offer = prepare(models, config, request)
        return offer, *allocate(models, config, offer, request.bid, levers)

    return split_rows(slates, request)


def checked(request: Request, catalogue: Catalogue, history_length: int) -> Request:
    """Refuses requests that cannot be served, naming the first culprit.

    Args:
      request: a batch, on any device or as lists; histories of any length.
      catalogue: what ids stand for.
      history_length: T, the behaviours that the models read.

    Returns:
      The batch on the host, free to go to all devices, of the types that a `Request` has;
      histories `[B, T]`, of the last behaviours.

    Raises:
      ValueError: shapes do not agree, an id is out of range, a bid is negative, NaN or beyond
        `LARGEST`, an ad or an organic item comes twice, or there is nothing to show.
    """
    arrays: Any = {name: _rows(name, values) for name, values in vars(request).items()}
    arrays["is_ad"] = arrays["is_ad"].astype(bool)
    host: Any = Request(**arrays)
    for field, name in _SHAPED_AS.items():
        shape, expected = getattr(host, field).shape, getattr(host, name).shape
        if shape != expected or len(shape) != 2 or shape[0] != len(host.item):
            raise ValueError(
                f"{field} is {list(shape)} and {name} {list(expected)} in a batch of "
                f"{len(host.item)}: both are rows of one length for every request"
            )
    pois, creatives = catalogue.poi_codes.shape[0], catalogue.creative_codes.shape[0]
    limits = {"item": pois, "history_poi": pois, "history_creative": creatives}
    for name, limit in limits.items():
        ids = getattr(host, name)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{name} is {ids.dtype}: ids are integers")
        _refuse((ids < -1) | (ids >= limit), name, ids, f"outside [0, {limit})")
    shown = host.item >= 0
    wrong = shown & host.is_ad & ~is_amount(host.bid)
    _refuse(wrong, "ad", host.bid, f"not a bid from 0 to {LARGEST:g}")
    _refuse(shown & ~host.is_ad & (host.bid != 0), "organic item", host.bid, "not 0, its bid")
    same = (host.item[..., :, None] == host.item[..., None, :]) & shown[..., None]
    same &= host.is_ad[..., :, None] == host.is_ad[..., None, :]
    _refuse(np.tril(same, -1).any(axis=-1), "candidate", host.item, "listed twice")
    empty = np.flatnonzero(~shown.any(axis=-1))
    if empty.size:
        raise ValueError(f"request {empty[0]} has no candidates")
    arrays |= {"bid": np.where(shown, host.bid, 0.0), "is_ad": shown & host.is_ad}
    before = np.full((len(host.item), history_length), -1)
    for name in ("history_poi", "history_creative"):
        arrays[name] = np.hstack([before, arrays[name]])[:, -history_length:]
    dtypes = {"is_ad": bool, "bid": np.float32}
    return Request(**{name: x.astype(dtypes.get(name, np.int32)) for name, x in arrays.items()})


def _rows(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: rows of unequal length; -1 pads ids, 0 bids") from error


def _refuse(wrong: np.ndarray, name: str, values: np.ndarray, rule: str) -> None:
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise ValueError(f"request {row}, {name} {place}: {values[row, place]} is {rule}")
