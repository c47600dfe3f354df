"""EGA's own phase: the generator's alignment to auction revenue by policy gradient (sec. 4.4.2)."""

import dataclasses
from typing import TypeVar

import chex
import jax

from ega_jax.auction import alignment
from ega_jax.auction.alignment import AlignmentConfig, AlignmentSettings
from ega_jax.auction.credit import ESTIMATORS, Credits
from ega_jax.auction.ega import EGA, EGAConfig
from ega_jax.auction.settings import SearchSettings, TokenWeights
from ega_jax.auction.system import Levers
from ega_jax.data import pipeline
from ega_jax.errors import UserError
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.lever_rules import check_book_levers
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import request_of
from ega_jax.phases.settings import PhaseSettings
from ega_jax.setting import part_of
from ega_jax.training.loop import Phase
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import LossFn, Params

S = TypeVar("S", bound=EGA)


def train_ega(run: AuctionTraining) -> EGA:
    """Returns EGA with its generator aligned by policy gradient (32), or trained in one stage."""
    system = ega_with(run, run.pretraining.restore_generator())
    if run.settings.alignment.one_stage:
        params = run.train_phase(_joint_phase(run, system))
        return dataclasses.replace(system, decoder=system.decoder.with_parameters(params))
    settings = _alignment_config(run, run.settings.alignment.part)
    return align(run, system, auction_loss(system, settings, run.levers))


def ega_with(run: AuctionTraining, params: Params) -> EGA:
    """Returns EGA with the given parameters of the generator.

    Raises:
      UserError: the order of ads in the log's books does not serve the levers.
    """
    book, levers = run.book(run.levers), vars(run.levers)
    if book is not None:
        takes_means = run.settings.allocation.token_bid == "mean"
        check_book_levers(levers, float(book.smoothing), takes_means)
    search = part_of(run.settings.allocation, SearchSettings)
    config = EGAConfig(reward=run.reward_config, **search)
    decoder = GeneratorDecoder(params, run.pretraining.generator_config)
    return EGA(
        reward=run.reward,
        items=run.items,
        config=config,
        book=book,
        decoder=decoder,
    )


def align(run: AuctionTraining, system: S, loss: LossFn) -> S:
    """Trains a part of a pre-trained generator on auctions; with 0 steps it stays unchanged.

    Args:
      run: the system's training, with the settings of the alignment.
      system: the system with its pre-trained generator.
      loss: the loss of the trained part's parameters; its variables are all the pre-trained
        parameters.
    """
    if not run.settings.alignment.num_steps:
        return system
    decoder = system.decoder
    trained = run.train_phase(_alignment_phase(run, decoder, loss))
    return dataclasses.replace(system, decoder=decoder.with_parameters(trained))


def _alignment_config(run: AuctionTraining, part: str) -> AlignmentConfig:
    own = part_of(run.settings.alignment, AlignmentSettings) | {"part": part}
    return AlignmentConfig(**part_of(run.settings.allocation, TokenWeights), **own)


def _alignment_phase(run: AuctionTraining, decoder: Decoder, loss: LossFn) -> Phase:
    settings = run.settings.alignment
    pretrained, trained = decoder.trainable("all"), decoder.trainable(settings.part)
    optimizer = settings.optimizer()
    return Phase(
        name="alignment",
        init=lambda: TrainState.create(trained, optimizer, pretrained),
        step=make_train_step(loss, optimizer, run.key(4)),
        batches=pipeline.train_batches(
            run.dataset,
            "align",
            batch_size=settings.batch_size,
            history_length=run.settings.data.history_length,
            seed=run.settings.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        num_steps=settings.num_steps,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
    )


def _joint_phase(run: AuctionTraining, system: EGA) -> Phase:
    """Trains in one stage instead of two (the ablation EGA-end), from fresh parameters.

    Every step adds the policy-gradient loss on the first rows of its batch to the pre-training
    loss. There are as many of these rows, to a whole number a step, as requests in an alignment of
    its own, and the KL penalty is the same: from the generator that the first stage alone gives.
    """
    rows = _reinforced_rows(run.settings)
    pretrained = system.decoder.trainable("all")
    interest = run.pretraining.loss
    auction = auction_loss(system, _alignment_config(run, "all"), run.levers)

    def loss(params: Params, variables, batch: dict[str, jax.Array], key: jax.Array):
        some = jax.tree.map(lambda x: x[:rows], batch)
        key, own_key = jax.random.split(key)
        nll, (metrics, _) = interest(params, variables, batch, key)
        gain, (more, _) = auction(params, pretrained, some, own_key)
        return nll + gain, (metrics | more, variables)

    return dataclasses.replace(run.pretraining.generator_phase(loss=loss), name="joint")


def _reinforced_rows(settings: PhaseSettings) -> int:
    """The rows of each batch that take the policy gradient if there is one stage."""
    requests = settings.alignment.num_steps * settings.alignment.batch_size
    return max(round(requests / settings.training.num_steps), 1) if requests else 0


def check_ega(settings: PhaseSettings) -> None:
    """Refuses one stage with no request of reinforcement a step, or more than its batch has.

    Raises:
      UserError: names the fields.
    """
    rows, most = _reinforced_rows(settings), settings.training.batch_size
    if settings.alignment.one_stage and not 1 <= rows <= most:
        raise UserError(
            "config.alignment.one_stage: the requests of config.alignment.num_steps and batch_size "
            f"would be {rows} rows of each of the {settings.training.num_steps} batches of the "
            f"pre-training; a batch has 1 to {most}"
        )


def auction_loss(system: EGA, settings: AlignmentConfig, levers: Levers) -> LossFn:
    """Returns the alignment loss (32): slates of the current policy, with their credits.

    Args:
      system: allocates the slates, with the decoder's parameters of the current step.
      settings: the loss's settings; see `alignment.alignment_loss`.
      levers: the run-time settings of the allocation.
    """
    estimator = ESTIMATORS[settings.estimator]

    def choose(decoder: Decoder, batch: dict[str, jax.Array], key: chex.PRNGKey) -> Credits:
        current = dataclasses.replace(system, decoder=decoder)
        prepared = jax.vmap(lambda request: current.prepare(request, levers))(request_of(batch))
        return estimator(current, prepared, key, settings.num_samples)

    return alignment.alignment_loss(system.decoder, settings, system.items.catalogue, choose)
