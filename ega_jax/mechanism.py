"""The serving interface: from requests to slates, creatives and prices in one call."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ega_jax.archive import unpacked
from ega_jax.artefact import BOOK, LIST
from ega_jax.auction.counterfactuals import counterfactuals, of_the_menu
from ega_jax.auction.pricing import RULES, Needs, PricingConfig, prices
from ega_jax.auction.system import Levers, Menu, System
from ega_jax.errors import UserError
from ega_jax.explanation import Explanation, explain
from ega_jax.exporting import export_mechanism
from ega_jax.generation.ad_book import AdBook
from ega_jax.lever_rules import TRUTHFUL, check_book_levers, checked_settings
from ega_jax.request_rules import RequestSizes, checked, checked_in_books
from ega_jax.training import structs
from ega_jax.training.checkpoints import read_metadata, read_tree, save_tree
from ega_jax.training.mesh import map_looping, map_looping_anywhere, split_rows
from ega_jax.types import AnyRequest, BookRequest, Params, Slate


@struct.dataclass
class ChosenRule:
    """The payment rule of one call, as arrays: changing the rule does not recompile."""

    is_rule: dict[str, np.bool_]  # Rule -> whether it is charged.
    searches: np.bool_  # The rule needs a second search unless the menu is bid-free.
    probes: np.bool_  # The rule needs clicks at other bids, which always need a second search.


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """A trained auction: deterministic, batched, compiled once per request shape.

    The rows of a batch are split over this host's devices.

    Attributes:
      system: the system that allocates slates, such as `EGA`.
      networks: parameters of the payment networks, by head.
      pricing: sizes of the payment networks and of their inputs.
      levers: default run-time settings.
      rule: default payment rule, one of `choices`.
    """

    system: System
    networks: dict[str, Params]
    pricing: PricingConfig
    levers: Levers
    rule: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The payment rules available for serving."""
        return (*self.pricing.rules, TRUTHFUL)

    def with_book(self, book: AdBook | None) -> "Mechanism":
        """The mechanism with other ads for sale, for requests to books; None for no books."""
        return dataclasses.replace(self, system=dataclasses.replace(self.system, book=book))

    def allocate(self, request: AnyRequest, rule: str | None = None, **levers: float) -> Slate:
        """Chooses and prices a slate for each request.

        Args:
          request: a batch of requests, with lists of their own or to books of `with_book`; only
            the last T behaviours of a history are read.
          rule: payment rule, one of `choices`; the mechanism's default if None.
          **levers: fields of `Levers` that replace the defaults; changing them does not recompile.

        Returns:
          The slates; a price per click is between 0 and the bid, and 0 for organic items.

        Raises:
          UserError: a request is invalid (the message names request and candidate), the payment
            rule is unknown, a lever is unknown or out of range, or the book does not serve the
            levers.
        """
        return self.allocate_with_menu(request, rule, **levers)[0]

    def allocate_along(
        self, request: AnyRequest, rule: str | None, points: Sequence[Mapping[str, float]]
    ) -> Slate:
        """Does what `allocate` does for `P` settings of the levers.

        What does not depend on a lever that moves is computed once: the encoded request, the click
        rates of its ads, and if `kappa` alone moves the search, unless tokens weigh by expected
        revenue.

        Args:
          request: a batch of requests, as for `allocate`.
          rule: payment rule, as for `allocate`.
          points: fields of `Levers` that replace the defaults, for each setting.

        Returns:
          The slates `[P, B, K]`.

        Raises:
          UserError: no point changes a lever; or as for `allocate`.
        """
        if not any(points):
            raise UserError("points: none changes a lever")
        found = [self.arguments(request, rule, **point) for point in points]
        each = [vars(levers) for *_, levers, _ in found]
        names = {name for point in points for name in point}
        moved = {name: np.stack([levers[name] for levers in each]) for name in names}
        return _serve_along(*found[0], moved)

    def allocate_with_menu(
        self, request: AnyRequest, rule: str | None = None, **levers: float
    ) -> tuple[Slate, Menu]:
        """Does what `allocate` does, and also returns the menus from which slates were chosen."""
        return serve(*self.arguments(request, rule, **levers))

    def arguments(
        self, request: AnyRequest, rule: str | None = None, **levers: float
    ) -> tuple[System, dict[str, Params], PricingConfig, AnyRequest, Levers, ChosenRule]:
        """The checked arguments of `serve`; arguments and errors as in `allocate`."""
        request = self._checked(request)
        chosen, settings = self._settings(rule, levers)
        self._check_book(request, settings)
        return self.system, self.networks, self.pricing, request, settings, chosen

    def explain(
        self, request: AnyRequest, row: int = 0, rule: str | None = None, **levers: float
    ) -> Explanation:
        """Explains the slate of request `row` of a batch; arguments and errors as in `allocate`.

        `explain(...).to_dict()` returns plain data, `explain(...).plot()` a figure.
        """
        request = self._checked(request)
        _, settings = self._settings(rule, levers)
        self._check_book(request, settings)
        if not 0 <= row < len(request.history_poi):
            raise UserError(f"row {row} is outside of a batch of {len(request.history_poi)}")
        single = jax.tree.map(lambda x: jnp.asarray(x[row]), request)
        return explain(self.system, self.networks, self.pricing, single, settings)

    def _checked(self, request: AnyRequest) -> AnyRequest:
        if isinstance(request, BookRequest):
            return checked_in_books(request, self.request_sizes, self.num_books)
        return checked(request, self.request_sizes)

    @property
    def request_sizes(self) -> RequestSizes:
        """The sizes that decide which requests are valid."""
        catalogue, models = self.system.items.catalogue, self.system.config.reward
        return RequestSizes(
            pois=catalogue.poi_codes.shape[0],
            creatives=catalogue.creative_codes.shape[0],
            history_length=models.history_length,
            context_width=models.context.width,
        )

    @property
    def num_books(self) -> int | None:
        """The number of books of the forest; None without books."""
        return None if self.system.book is None else self.system.book.book_start.shape[0] - 1

    def _check_book(self, request: AnyRequest, levers: Levers) -> None:
        """Refuses levers that the book's order does not serve."""
        book = self.system.book
        reads_order = isinstance(request, BookRequest) and self.system.reads_search_bids
        if reads_order and book is not None:
            check_book_levers(vars(levers), float(book.smoothing), self.takes_means)

    @property
    def takes_means(self) -> bool:
        """Whether a token's bid is the mean of its ads' bids."""
        return getattr(self.system.config, "token_bid", "max") == "mean"

    def _settings(self, rule: str | None, changes: Mapping[str, Any]) -> tuple[ChosenRule, Levers]:
        """The rule and the levers of one call."""
        rule = self.rule if rule is None else rule
        charged, levers = checked_settings(rule, self.choices, vars(self.levers), changes)
        return self.chosen(charged), Levers(**levers)

    def chosen(self, rule: str) -> ChosenRule:
        """The payment rule as an argument of `serve`."""
        needs = RULES[rule].needs
        return ChosenRule(
            is_rule={name: np.bool_(name == rule) for name in self.pricing.rules},
            searches=np.bool_(needs is Needs.SEARCH),
            probes=np.bool_(needs.probes),
        )

    def export(
        self,
        folder: str | os.PathLike,
        batch_sizes: Sequence[int] = (1, 8, 32),
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
        *,
        num_candidates: int = 128,
        num_organic: int = 128,
    ) -> None:
        """Exports the mechanism as StableHLO, which `ega_jax.serving` serves without the models.

        Parameters are files beside the functions. Requests, the book, payment rule and levers stay
        arguments. With a book of `with_book`, requests to books are exported, too.

        Args:
          folder: the folder to write; an earlier export is replaced.
          batch_sizes: numbers of requests that a function takes; one function is exported for each.
          platforms: platforms that the functions run on: cpu, cuda, rocm, tpu.
          num_candidates: most candidates of a request with a list of its own.
          num_organic: most organic items of a request to a book.

        Raises:
          UserError: a number or a platform is invalid, or the folder holds something else.
        """

        def serve_plain(system, networks, request, levers, rule):
            settings = Levers(**levers), ChosenRule(**rule)
            arguments = system, networks, self.pricing, *settings, request
            return _slates(*arguments, map_each=map_looping_anywhere)[0]

        lengths = {LIST: num_candidates, BOOK: num_organic}
        export_mechanism(self, serve_plain, folder, batch_sizes, platforms, lengths)

    def save(self, folder: str | os.PathLike) -> None:
        """Saves everything that `restore` needs in one folder, for every system.

        A book is live and not saved; see `with_book`.
        """
        parts = {
            "system": dataclasses.replace(self.system, book=None),
            "networks": self.networks,
            "pricing": _Static(self.pricing),
            "levers": jax.tree.map(jnp.asarray, self.levers),
        }
        metadata = {"mechanism": structs.describe(parts), "rule": self.rule}
        save_tree(folder, structs.to_tree(parts), metadata)

    @classmethod
    def restore(cls, workdir: str | os.PathLike, system: str = "ega") -> "Mechanism":
        """Restores a trained mechanism; neither dataset nor tokenizer is needed.

        Args:
          workdir: the workdir in which `experiments.auction_align` trained it, or an archive of
            `experiments.pack`.
          system: the name of one of the workdir's systems.

        Raises:
          FileNotFoundError: there is no such mechanism; the message lists those that exist.
          UserError: the mechanism was saved by an earlier version, or the archive was cut off or
            changed.
        """
        path = Path(workdir).expanduser().absolute()
        with unpacked(path) if path.is_file() else contextlib.nullcontext(path) as opened:
            folder = mechanism_folder(opened, system)
            if not folder.is_dir():
                found = sorted(path.parent.name for path in opened.glob("systems/*/mechanism"))
                raise FileNotFoundError(
                    f"{path} holds no mechanism {system!r}, but {', '.join(found) or 'none'}: run "
                    "experiments.auction_align first"
                )
            metadata = read_metadata(folder)
            if "mechanism" not in metadata:
                raise UserError(
                    f"the mechanism {system!r} in {path} was saved by an earlier version: run "
                    "experiments.auction_align again"
                )
            parts = structs.rebuild(metadata["mechanism"], read_tree(folder))
        return cls(**parts | {"pricing": parts["pricing"].value, "rule": metadata["rule"]})


@struct.dataclass
class _Static:
    """Wraps a value without arrays, so that it can be saved along with structs."""

    value: Any = struct.field(pytree_node=False)


def mechanism_folder(workdir: str | os.PathLike, system: str) -> Path:
    """The folder in which a system's mechanism is saved."""
    return Path(workdir).expanduser().absolute() / "systems" / system / "mechanism"


@functools.partial(jax.jit, static_argnames="pricing")
def serve(
    system: System,
    networks: dict[str, Params],
    pricing: PricingConfig,
    request: AnyRequest,
    levers: Levers,
    chosen: ChosenRule,
) -> tuple[Slate, Menu]:
    """Slates of a batch of requests, with the prices of one rule, and the menus of the slates."""
    return split_rows(
        functools.partial(_slates, system, networks, pricing, levers, chosen), request
    )


@functools.partial(jax.jit, static_argnames="pricing")
def _serve_along(
    system: System,
    networks: dict[str, Params],
    pricing: PricingConfig,
    request: AnyRequest,
    levers: Levers,
    chosen: ChosenRule,
    moved: Mapping[str, jax.Array],
) -> Slate:
    """Slates `[P, B, K]` for the values `[P]` of each lever that moves."""

    def at(point: Mapping[str, jax.Array]) -> Slate:
        replaced = dataclasses.replace(levers, **point)
        return serve(system, networks, pricing, request, replaced, chosen)[0]

    return jax.vmap(at)(moved)


def _slates(
    system: System,
    networks: dict[str, Params],
    pricing: PricingConfig,
    levers: Levers,
    chosen: ChosenRule,
    request: AnyRequest,
    map_each: Callable[[Callable, Any], Any] = map_looping,
) -> tuple[Slate, Menu]:
    """Slates and menus of the requests `[B]` of one device.

    The last argument applies a function with loops to the rows of a batch.
    """
    # Clarke prices of a bid-free menu need no second search; clicks at other bids always need one.
    searches = chosen.probes | (chosen.searches & ~jnp.asarray(levers.bid_free))

    def allocated(request: AnyRequest):
        prepared = system.prepare(request, levers)
        return prepared, *system.allocate(prepared)

    prepared, allocation, menu = jax.vmap(allocated)(request)

    def from_menu(_):
        tell = lambda menu, ads: of_the_menu(menu, levers, ads, pricing.probed)
        return jax.vmap(tell)(menu, allocation.ads)

    def search_again(_):
        search = lambda prepared, ads, menu: counterfactuals(
            system, pricing.probed, prepared, ads, menu
        )
        return map_each(lambda x: search(*x)[0], (prepared, allocation.ads, menu))

    known = lax.cond(searches, search_again, from_menu, None)
    price = lambda *found: prices(networks, pricing, levers, *found)
    every = jax.vmap(price)(allocation, menu, known)
    charged = [jnp.where(chosen.is_rule[name], every[name], 0.0) for name in pricing.rules]
    slate = Slate(
        items=allocation.item,
        creatives=allocation.creative,
        is_ad=allocation.is_ad,
        bid=allocation.bid,
        price_per_click=jnp.stack(charged).sum(0),
        pctr=allocation.prediction.click_poi,
        pctr_image=allocation.prediction.click_image,
        pcvr=allocation.prediction.convert,
    )
    return slate, menu
