"""Compares rankers that read ids, semantic codes or features, on old and on new ads apart.

Trains the pre-ranker (a two-tower model) on the logged clicks of a pre-trained workdir in three
forms, which differ in what they read of an item, each with several seeds. No training session
shows a new ad.

- `ids`: an embedding for each id; all new items share one, which training has not seen;
- `codes`: the semantic codes alone;
- `features`: codes and embeddings, as MCA's pre-ranker does.

    python -m experiments.cold_start --workdir=runs/market-small/market-0

Prints means with 95 % Student intervals over seeds, of test sessions and whole books, and adds all
figures to results.json under `cold_start, N sessions`. `ega_jax.evaluation.cold_start.by_age`
defines them. Models are stored in cold_start/; finished models are not trained again.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from ega_jax.baselines.cascade import two_tower
from ega_jax.baselines.cascade.stages import Stages
from ega_jax.baselines.cascade.two_tower import TwoTowerConfig, two_tower_phase
from ega_jax.data.seen_items import seen_pois
from ega_jax.errors import UserError
from ega_jax.evaluation.cold_start import AGES, FOUND, RankedAds, by_age
from ega_jax.evaluation.observability import clicks_alone
from ega_jax.evaluation.visits import offer_in
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import real_rows
from ega_jax.reward.network import Items
from ega_jax.types import Params
from experiments.common import command
from experiments.common.runs import truth_of
from experiments.common.seeds import mean_shown, measured_by_seed, pretrained_run

flags.adopt_module_key_flags(command)
FORMS = ("ids", "codes", "features")
FIGURES = ("auc", f"recall@{FOUND}", "value")
AT_ONCE = 64  # Sessions whose whole books are in memory.
_SEEDS = flags.DEFINE_integer("ranker_seeds", 3, "Number of seeds per ranker.", 1)
_SESSIONS = flags.DEFINE_integer("ranked_sessions", 8192, "Test sessions, evenly spread.", 1)


def main() -> None:
    """Runs the command."""
    run = pretrained_run()
    is_new = ~seen_pois(run.dataset)
    if not is_new.any():
        raise UserError("the training sessions have seen every item: there are no new ones")
    measured = lambda form, seed: measure(run, is_new, form, seed)
    study = f"cold_start, {_SESSIONS.value} sessions"
    found = measured_by_seed(run, study, FORMS, _SEEDS.value, measured)
    print_rankers(found, run.settings.name)


def measure(run: AuctionTraining, is_new: np.ndarray, form: str, seed: int) -> dict[str, float]:
    """Trains a ranker of one form with one seed, or restores it, and measures it."""
    stages, summary = Stages(run), run.dataset.summary
    items, config = in_form(run, is_new, form)
    settings = stages.settings.two_tower
    phase = two_tower_phase(run.dataset, items, config, settings, seed)
    params = run.train_shared(phase, f"cold_start/{form}-{seed}", settings)
    return by_age(ranked(run, params, config, items), is_new, summary.max_ads or summary.num_slots)


def in_form(run: AuctionTraining, is_new: np.ndarray, form: str) -> tuple[Items, TwoTowerConfig]:
    """What a ranker of one of `FORMS` reads of the items, and its config."""
    items, config = run.items, Stages(run).two_tower_config
    if form == "features":
        return items, config
    nothing = jnp.zeros_like(items.poi_embedding), jnp.zeros_like(items.creative_embedding)
    if form == "codes":
        return Items(items.catalogue, *nothing), config
    new_creative = is_new[run.dataset.creative_poi]
    poi, creative = (jnp.asarray(_own_codes(new)) for new in (is_new, new_creative))
    catalogue = dataclasses.replace(items.catalogue, poi_codes=poi, creative_codes=creative)
    most = 1 + max(len(poi), len(creative))
    by_id = dataclasses.replace(config, num_codes=most, num_layers=1)
    return Items(catalogue, *nothing), by_id


def _own_codes(is_new: np.ndarray) -> np.ndarray:
    """One code for each old item, and code 0 for all new ones, `[N, 1]`."""
    return np.where(is_new, 0, 1 + np.arange(len(is_new), dtype=np.int32))[:, None]


def ranked(run: AuctionTraining, params: Params, config: TwoTowerConfig, items: Items) -> RankedAds:
    """Click rates of test sessions' ads, of those shown and of those for sale, by a ranker."""
    table = two_tower.poi_table(params, config, items)
    shift = params["slot"][0] + params["ad"][1]  # Of an ad in the first slot.

    @jax.jit
    def rates(batch: Mapping[str, Any], poi: jax.Array) -> jax.Array:
        request = batch["history_poi"], batch["history_creative"], poi, batch.get("context")
        return jax.nn.sigmoid(two_tower.scores(params, config, items, table, *request) + shift)

    truth, books = truth_of(run), run.dataset.books
    first = np.asarray(items.catalogue.poi_creatives)[:, 0]

    def part(batch: Mapping[str, Any]) -> RankedAds:
        offer, real = offer_in(batch, books), real_rows(batch)
        shown = np.where(batch["shown_is_ad"], batch["shown_poi"], -1)
        found = RankedAds(
            shown=shown,
            clicked=np.asarray(batch["click_poi"]),
            shown_rate=np.asarray(rates(batch, jnp.asarray(shown))),
            poi=offer.poi,
            bid=offer.bid,
            rate=np.asarray(rates(batch, jnp.asarray(offer.poi))),
            true_rate=None
            if truth is None
            else clicks_alone(truth, batch["session"], offer.poi, first),
        )
        return jax.tree.map(lambda x: x[real], found)

    parts = [part(batch) for batch in run.sessions("test", _SESSIONS.value, AT_ONCE)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def print_rankers(found: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Prints one line per figure and age, by form."""
    table = Table("ads", "figure", *FORMS, title=title, title_justify="left")
    for age, figure in itertools.product(AGES, FIGURES):
        values = [[run.get(f"{figure}_{age}") for run in found[form].values()] for form in FORMS]
        if None not in values[0]:
            table.add_row(age, figure, *map(mean_shown, values))
    Console(width=100).print(table)
    clicks = next(iter(found[FORMS[0]].values()))
    print(", ".join(f"{clicks[f'clicks_{age}']} clicks on {age} ads" for age in AGES))


if __name__ == "__main__":
    command.run(main, __doc__)
