"""Tests the payment network on auctions whose truthful prices are known.

Three bidders have values uniform on [0, 1]. The allocation depends on their bids only.

- `step`: one slot; the highest bid wins if it reaches the optimal reserve of 1/2. The expected
  revenue of the truthful auction is 17/32 = 0.531 (Myerson, 1981).
- `smooth`: each bidder gets the allocation probability (22) of one layer with equal logits.

Each head is trained on each allocation with the modules of `ega_jax.payment`, from outcomes only.
It is then compared with Myerson's integral, on held-out bids and a fine grid of misreports.

    python -m experiments.payment_theory --workdir=DIR

The workdir then holds results.json, prices.png, checkpoints/ and metrics/. To continue a stopped
run, run the same command again.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as ShownTable
from scipy.stats import qmc

from ega_jax.evaluation.report import write_results
from ega_jax.generation.bidding import allocation_log_probs
from ega_jax.payment import lagrangian, network, regret, rules
from ega_jax.payment.lagrangian import LagrangianConfig
from ega_jax.payment.network import HEADS, Context, PaymentConfig
from ega_jax.payment.regret import Outcome
from ega_jax.training.checkpoints import check_workdir
from ega_jax.training.loop import Phase, train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Params
from experiments.common import command

flags.adopt_module_key_flags(command)
_STEPS = flags.DEFINE_integer("payment_steps", 2000, "Training steps of each network.", 1)
_PROFILES = flags.DEFINE_integer("profiles", 4096, "Bid profiles to evaluate; a power of 2.", 2)

BIDDERS = 3
RESERVE = 0.5
ALPHA, BETA = 1.2, 2.0  # Of the smooth allocation (21).
BATCH, MISREPORTS = 64, 16  # Per training step.
FINE = 400  # Grid of misreports in the evaluation; half the intervals of Myerson's integral.
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, schedule="cosine", clip_norm=1.0)
LAGRANGIAN = LagrangianConfig(rho=100.0, rho_growth=1.02, multiplier_init=100.0, every_report=False)
OTHERS = (0.6, 0.3)  # Bids of the two other bidders in the figure.
LIMIT = 1e-6  # Distance above a jump of the allocation at which a report just wins.


def step_allocation(bids: jax.Array) -> jax.Array:
    """Maps bids `[3]` to clicks `[3]`: 1 for the highest bid if it reaches the reserve."""
    return jax.nn.one_hot(jnp.argmax(bids), BIDDERS) * (bids.max() >= RESERVE)


def smooth_allocation(bids: jax.Array) -> jax.Array:
    """Maps bids `[3]` to clicks `[3]`: the allocation probabilities (22) of equal logits."""
    valid = jnp.ones(BIDDERS, bool)
    return jnp.exp(allocation_log_probs(jnp.zeros(BIDDERS), bids, valid, ALPHA, BETA))


ALLOCATIONS = {"step": step_allocation, "smooth": smooth_allocation}


@dataclasses.dataclass(frozen=True)
class Study:
    """One head on one allocation."""

    allocation: str
    head: str

    def outcome(self, bids: jax.Array, ad: jax.Array) -> Outcome:
        """Returns the clicks of bidder `ad` at bids `[3]`, and the network's inputs."""
        clicks = ALLOCATIONS[self.allocation](bids)[ad]
        others = jnp.sort(bids.at[ad].set(0.0), descending=True)[: BIDDERS - 1]
        return Outcome(
            bids[ad], clicks, Context(jnp.zeros(0), others, jnp.zeros(0), clicks, jnp.ones(()))
        )

    def table(self, bids: jax.Array, reports: jax.Array) -> regret.Table:
        """Returns outcomes of a profile `[3]` at misreports `[3, J]`; bidders stand for slots."""

        def outcomes_of(bidders: jax.Array, reports: jax.Array) -> Outcome:
            one = lambda bidder, report: self.outcome(bids.at[bidder].set(report), bidder)
            return jax.vmap(one)(bidders, reports)

        return regret.tabulate(outcomes_of, jnp.arange(BIDDERS), bids, reports)

    @property
    def config(self) -> PaymentConfig:
        """The network's config."""
        return PaymentConfig(self.head)

    @property
    def loss(self) -> Callable:
        """The loss of a batch of profiles and misreports; each step makes its own table."""
        loss_of_table = lagrangian.payment_loss(self.config, LAGRANGIAN)

        def loss(params, state, batch, key):
            table = jax.vmap(self.table)(batch["bids"], batch["reports"])
            return loss_of_table(params, state, regret.batch_of(table), key)

        return loss

    def train(self, num_steps: int, workdir: Path, config: dict[str, Any]) -> Params:
        """Trains the network, from its last checkpoint if there is one."""
        optimizer = make_optimizer(OPTIMIZER, num_steps)

        def init() -> TrainState:
            sample = self.outcome(jnp.ones(BIDDERS), jnp.zeros((), int)).context
            params = network.init(jax.random.key(0), self.config, sample)
            return TrainState.create(params, optimizer, lagrangian.start(LAGRANGIAN, BIDDERS))

        phase = Phase(
            name=f"{self.allocation}-{self.head}",
            init=init,
            step=make_train_step(self.loss, optimizer, jax.random.key(1)),
            batches=grain.MapDataset.range(num_steps).map(draw).to_iter_dataset(),
            num_steps=num_steps,
        )
        return train(phase, workdir=workdir, config=config, mesh=data_mesh()).params

    def charges(self, params: Params, bids: jax.Array) -> dict[str, jax.Array]:
        """Returns a profile's results of `settle`, clicks and Myerson's payments, all `[3]`."""
        grid = jnp.arange(1, FINE + 1) / FINE
        jumps = jnp.append(bids, RESERVE) + LIMIT  # Just beats another bidder, or the reserve.
        reports = jnp.broadcast_to(jnp.append(grid, jumps), (BIDDERS, FINE + BIDDERS + 1))
        settled = lagrangian.settle(params, self.config, self.table(bids, reports))
        return {name: amount[:, 0] for name, amount in settled.items()} | {
            "clicks": ALLOCATIONS[self.allocation](bids),
            "myerson": jax.vmap(functools.partial(self.myerson, bids))(jnp.arange(BIDDERS)),
        }

    def myerson(self, bids: jax.Array, ad: jax.Array) -> jax.Array:
        """Returns Myerson's total payment of a bidder."""
        grid = bids[ad] * jnp.linspace(0.0, 1.0, 2 * FINE + 1)
        clicks = jax.vmap(lambda report: self.outcome(bids.at[ad].set(report), ad).clicks)(grid)
        return rules.myerson(grid, clicks)


def draw(index: int) -> dict[str, np.ndarray]:
    """Draws training batch `index`: profiles `[B, 3]` and misreports `[B, 3, J]`."""
    random = np.random.default_rng(index)
    bids = random.random((BATCH, BIDDERS), np.float32)
    factors = 1.25 * random.random((BATCH, BIDDERS, MISREPORTS), np.float32)
    return {"bids": bids, "reports": factors * bids[..., None]}


def measure(study: Study, params: Params, num_profiles: int) -> dict[str, float]:
    """Compares a trained network with theory, over evenly spread profiles.

    Returns:
      Means per auction, summed over bidders: `revenue`, `myerson_revenue`, and `regret` over the
      fine grid, including losers; `regret_over_utility`, 0 if there is no utility. Means over
      bidders with clicks: `price` per click, `myerson_price`, their ratio `price_over_myerson`, and
      `price_error`, the mean absolute error over the mean of Myerson's price.
    """
    profiles = qmc.Sobol(BIDDERS, seed=0).random(num_profiles).astype(np.float32)
    charges = jax.jit(functools.partial(study.charges, params))
    found = jax.device_get(jax.lax.map(charges, profiles, batch_size=64))
    totals = {name: float(amounts.sum(1).mean()) for name, amounts in found.items()}
    won = found["clicks"] > 0
    price, truthful = (found[name][won] / found["clicks"][won] for name in ("revenue", "myerson"))
    return {
        "revenue": totals["revenue"],
        "myerson_revenue": totals["myerson"],
        "regret": totals["regret"],
        "regret_over_utility": totals["utility"] and totals["regret"] / totals["utility"],
        "price": float(price.mean()),
        "myerson_price": float(truthful.mean()),
        "price_over_myerson": float(price.mean() / truthful.mean()),
        "price_error": float(np.abs(price - truthful).mean() / truthful.mean()),
    }


def draw_prices(networks: dict[Study, Params], path: Path) -> None:
    """Draws each head's price per click and Myerson's, over the bid of one bidder."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = dict(
        zip(ALLOCATIONS, figure.subplots(1, len(ALLOCATIONS), squeeze=False)[0], strict=True)
    )
    bid = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    profiles = np.stack([bid, *(np.full_like(bid, other) for other in OTHERS)], axis=1)
    for study, params in networks.items():
        charges = jax.jit(jax.vmap(functools.partial(study.charges, params)))
        found = {name: amounts[:, 0] for name, amounts in jax.device_get(charges(profiles)).items()}
        won, axes = found["clicks"] > 0, panels[study.allocation]
        price = lambda name, found=found, won=won: found[name][won] / found["clicks"][won]
        if study.head == HEADS[0]:
            axes.plot(bid[won], price("myerson"), "k", lw=4, alpha=0.3, label="Myerson")
        axes.plot(bid[won], price("revenue"), label=study.head)
    for name, axes in panels.items():
        axes.set(title=f"{name}; the others bid {OTHERS}", xlabel="bid", ylabel="price of a click")
        axes.legend()
    figure.savefig(path, dpi=120)


def print_results(results: dict[str, dict[str, float]]) -> None:
    """Prints one line per network."""
    table = ShownTable("network", *next(iter(results.values())))
    for name, measured in results.items():
        table.add_row(name, *(f"{value:.4f}" for value in measured.values()))
    Console(width=140).print(table)


def main() -> None:
    """Runs the command."""
    workdir = Path(flags.FLAGS.workdir or "runs/payment-theory").expanduser().absolute()
    settings = {"optimizer": OPTIMIZER, "lagrangian": LAGRANGIAN}
    config = {name: dataclasses.asdict(value) for name, value in settings.items()}
    check_workdir(workdir, config | {"steps": _STEPS.value}, ())
    networks, results = {}, {}
    for allocation, head in itertools.product(ALLOCATIONS, HEADS):
        study = Study(allocation, head)
        networks[study] = study.train(_STEPS.value, workdir, config)
        results[f"{allocation}-{head}"] = measure(study, networks[study], _PROFILES.value)
    write_results(workdir, {"payment_theory": results})
    draw_prices(networks, workdir / "prices.png")
    print_results(results)


if __name__ == "__main__":
    command.run(main, __doc__)
