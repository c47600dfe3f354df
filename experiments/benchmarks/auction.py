"""Auction parts of `experiments.benchmark`: speed of serving, re-allocation and training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.auction.alignment import AlignmentConfig
from ega_jax.auction.ega import EGA, EGAConfig
from ega_jax.auction.outcomes import tabulate_request
from ega_jax.auction.pricing import PricingConfig
from ega_jax.auction.system import Levers, check_levers
from ega_jax.evaluation import misreports
from ega_jax.evaluation.flops import flops_of, flops_per_request
from ega_jax.generation import generator
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.reports import Report
from ega_jax.mechanism import Mechanism
from ega_jax.payment import lagrangian, network, regret
from ega_jax.payment.lagrangian import LagrangianConfig
from ega_jax.payment.network import PaymentConfig
from ega_jax.phases.ega import auction_loss
from ega_jax.phases.requests import request_of
from ega_jax.reward import model as reward_model
from ega_jax.reward.losses import reward_loss
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.training.mesh import map_rows
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import AnyRequest, Catalogue
from experiments.benchmarks.timing import emit, matrix_product, timed

NUM_POIS, CREATIVES = 1000, 4
EMBEDDINGS = 64, 32
PRICING = PricingConfig()
NUM_REPORTS = 10  # J
NUM_LOSING = 4  # Losing ads whose reports are tried.
NUM_LAYERS = 3  # C
BATCHES = (1, 8, 32)
NUM_COUNTED = 4  # Requests whose FLOPs are counted.


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of an auction; the legend of the letters is in `types.py`."""

    num_codes: int  # W
    num_slots: int  # K
    history_length: int  # T
    num_candidates: int  # N
    num_beams: int  # S
    width: int  # D
    hidden: int
    blocks: int
    reward_width: int
    dtype: str = "float32"  # Of the generator's computation.

    @property
    def shared(self) -> dict[str, Any]:
        """Sizes that the generator and the reward model share."""
        return {
            "num_codes": self.num_codes,
            "num_layers": NUM_LAYERS,
            "num_slots": self.num_slots,
            "history_length": self.history_length,
        }

    @property
    def generator(self) -> GeneratorConfig:
        """The generator's config."""
        return GeneratorConfig(
            **self.shared,
            width=self.width,
            hidden=self.hidden,
            encoder_blocks=self.blocks,
            decoder_blocks=self.blocks,
            dtype=self.dtype,
        )


SHAPES = {
    "tiny": Shape(64, 5, 16, 32, 16, 64, 256, 2, 32),
    "small": Shape(256, 6, 32, 80, 32, 64, 256, 2, 64),
    "paper": Shape(1024, 10, 256, 200, 64, 128, 512, 3, 64),
}


class Auction:
    """Models of a given shape on random data, and the functions that are timed."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.rng = np.random.default_rng(0)
        items = self.items()
        sizes = shape.generator
        reward = RewardConfig(**shape.shared, width=shape.reward_width)
        config = EGAConfig(reward=reward, num_beams=shape.num_beams)
        key = jax.random.key(0)
        make_generator = jax.jit(lambda k: generator.init(k, sizes, items.catalogue))
        make_reward = jax.jit(lambda k: reward_model.init(k, config.reward, items))
        self.generator = GeneratorDecoder(make_generator(key), sizes)
        self.system = EGA(
            reward=make_reward(key), items=items, config=config, decoder=self.generator
        )
        self.levers = check_levers(Levers(), {})

    def items(self, num_pois: int = NUM_POIS) -> Items:
        """Returns random items."""
        owned = np.arange(num_pois * CREATIVES, dtype=np.int32).reshape(num_pois, CREATIVES)
        codes = lambda n: self.rng.integers(
            0, self.shape.num_codes, (n, NUM_LAYERS), dtype=np.int32
        )
        normal = lambda n, e: self.rng.standard_normal((n, e), dtype=np.float32)
        catalogue = Catalogue(*map(jnp.asarray, (codes(num_pois), codes(owned.size), owned)))
        poi, creative = EMBEDDINGS
        embeddings = normal(num_pois, poi), normal(owned.size, creative)
        return Items(catalogue, *map(jnp.asarray, embeddings))

    def batch(self, rows: int) -> dict[str, np.ndarray]:
        """Returns a random training batch, which includes the fields of `Request`."""
        s, rng = self.shape, self.rng
        poi = lambda *shape: rng.integers(0, NUM_POIS, shape, dtype=np.int32)
        flag = lambda: rng.random((rows, s.num_slots)) < 0.1
        history, shown = poi(rows, s.history_length), poi(rows, s.num_slots)
        item = np.stack([rng.permutation(NUM_POIS)[: s.num_candidates] for _ in range(rows)])
        is_ad = np.broadcast_to(np.arange(s.num_candidates) < s.num_candidates // 2, item.shape)
        return {
            "history_poi": history,
            "history_creative": history * CREATIVES,
            "item": item.astype(np.int32),
            "is_ad": is_ad.copy(),
            "bid": np.where(is_ad, rng.lognormal(size=item.shape), 0).astype(np.float32),
            "shown_poi": shown,
            "shown_creative": shown * CREATIVES,
            "shown_is_ad": flag(),
            "click_poi": flag(),
            "click_image": flag(),
            "convert": flag(),
        }

    def requests(self, rows: int) -> AnyRequest:
        """Returns a batch of random requests."""
        return request_of(self.batch(rows))

    def mechanism(self) -> Mechanism:
        """Returns the models with untrained payment networks."""
        tables = self.table(1)
        context = regret.table_of(tables).truth.context
        networks = {
            head: network.init(jax.random.key(1), PaymentConfig(head, PRICING.hidden), context)
            for head in network.HEADS
        }
        return Mechanism(self.system, networks, PRICING, self.levers, "threshold")

    def table(self, rows: int) -> dict[str, jax.Array]:
        """Returns random outcomes of `rows` requests, of the right shapes."""
        draw = lambda s: jnp.asarray(self.rng.random((rows, *s.shape)) + 0.1).astype(s.dtype)
        return jax.tree.map(draw, self._row)

    @functools.cached_property
    def _row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the outcomes of one request."""
        request = jax.tree.map(lambda x: x[0], request_of(self.batch(1)))
        return jax.eval_shape(
            lambda request: regret.batch_of(
                tabulate_request(
                    self.system, PRICING, request, self.levers, jax.random.key(0), NUM_REPORTS
                )
            ),
            request,
        )

    def tabulating(self, rows: int) -> Callable[[], Any]:
        """Returns a function that tabulates a batch of sessions, as training does."""

        @jax.jit
        def tabulate(system: EGA, requests: AnyRequest, keys: jax.Array):
            def one(x: tuple[AnyRequest, jax.Array]):
                return tabulate_request(system, PRICING, x[0], self.levers, x[1], NUM_REPORTS)

            return regret.batch_of(map_rows(one, (requests, keys)))

        keys = jax.random.split(jax.random.key(0), rows)
        return functools.partial(tabulate, self.system, self.requests(rows), keys)

    def judging(self, rows: int) -> dict[str, Callable[[], Any]]:
        """Returns functions that judge a batch of sessions: truthful bids, and other reports."""
        mechanism, request = self.mechanism(), self.requests(rows)
        prepared = misreports.prepare_batch(self.system, request, self.levers)
        truthful = functools.partial(misreports.truthful, mechanism, prepared, NUM_LOSING)
        fair = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(truthful))
        explore = functools.partial(misreports.explore, mechanism, prepared, fair)
        return {"judging, truthful": truthful, "judging, reports": explore}

    def reallocations(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Returns functions that run one allocation and the re-allocations of all reports."""
        batch = jax.tree.map(lambda x: jnp.asarray(x[0]), self.batch(1))
        prepared = jax.jit(EGA.prepare)(self.system, request_of(batch), self.levers)
        single, each = jax.jit(EGA.allocate), jax.jit(EGA.allocate_each)
        shown, _ = single(self.system, prepared)
        first = jnp.argmax(batch["is_ad"]).astype(jnp.int32)
        ad = jnp.where(shown.is_ad, shown.candidate, first)
        bid = batch["bid"][ad][:, None] * np.linspace(0.2, 2.0, NUM_REPORTS, dtype=np.float32)
        reports = Report(jnp.repeat(ad, NUM_REPORTS), bid.reshape(-1))
        one = functools.partial(single, self.system, prepared)
        return one, functools.partial(each, self.system, prepared, reports)

    def steps(self) -> dict[str, tuple[int, tuple[jax.stages.Wrapped, tuple]]]:
        """Returns, for each phase, the batch size, the training step and its arguments."""
        system = self.system
        reward = reward_loss(system.config.reward, system.items)
        payment = lagrangian.payment_loss(
            PaymentConfig("threshold", PRICING.hidden), LagrangianConfig()
        )
        duals = lagrangian.start(LagrangianConfig(), self.shape.num_slots)
        network_params = self.mechanism().networks["threshold"]
        return {
            "reward": (256, self._step(reward, system.reward, self.batch(256))),
            "alignment": (32, self.alignment(32)),
            "payment": (128, self._step(payment, network_params, self.table(128), duals)),
        }

    def alignment(self, rows: int) -> tuple[jax.stages.Wrapped, tuple]:
        """Returns the alignment's training step and its arguments."""
        decoder = self.system.decoder
        policy = auction_loss(self.system, AlignmentConfig(), self.levers)
        trained = decoder.trainable(AlignmentConfig().part)
        return self._step(policy, trained, self.batch(rows), decoder.trainable("all"))

    def _step(self, loss, params, batch, variables=()) -> tuple[jax.stages.Wrapped, tuple]:
        optimizer = make_optimizer(OptimizerConfig(1e-3), 1)
        step = jax.jit(make_train_step(loss, optimizer, jax.random.key(2)))
        return step, (
            TrainState.create(params, optimizer, variables),
            jax.tree.map(jnp.asarray, batch),
        )


def measure_serving(name: str, rounds: int) -> None:
    """Times allocations of one shape; emits one line per measurement, a median of `rounds` runs."""
    auction = Auction(SHAPES[name])
    mechanism = auction.mechanism()
    counted = auction.requests(NUM_COUNTED)
    for rule in ("gsp", "threshold"):
        best, work = 0.0, float(flops_per_request(mechanism, counted, rule).mean())
        for rows in BATCHES:
            request = request_of(auction.batch(rows))
            (median,) = timed([lambda r=request, by=rule: mechanism.allocate(r, by)], rounds)
            speed = rows / median
            served = {"rule": rule, "batch": rows, "requests_per_s": speed}
            served |= {"gflop_per_request": work / 1e9}
            emit({"part": "allocate", "shape": name} | served)
            if speed < 1.1 * best:
                break  # Larger batches are not faster.
            best = speed
    one, every = timed(list(auction.reallocations()), rounds)
    count = NUM_REPORTS * auction.shape.num_slots
    share = {"ms_one": 1e3 * one, "ms_all": 1e3 * every, "share": every / (count * one)}
    emit({"part": "reallocate", "shape": name, "reports": count} | share)


def measure_phases(name: str, rounds: int) -> None:
    """Times a training step of each phase of one shape, as a median of `rounds` runs."""
    product = matrix_product()
    for phase, (rows, (function, given)) in Auction(SHAPES[name]).steps().items():
        step = function.lower(*given).compile()
        (median,) = timed([functools.partial(step, *given)], rounds)
        share = flops_of(function, *given) / median / product()
        record = {"part": phase, "shape": name, "batch": rows, "steps_per_s": 1 / median}
        emit(record | {"share_of_matmul": share})
