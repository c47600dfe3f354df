"""EGA's own phase between reward model and payments: the generator learns from auctions (4.4.2)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax import lax

from ega_jax.auction import alignment
from ega_jax.auction.alignment import AlignmentConfig, AlignmentSettings
from ega_jax.auction.contributions import contributions
from ega_jax.auction.ega import AllocationConfig, Models, candidates_of
from ega_jax.auction.settings import SearchSettings, TokenWeights
from ega_jax.auction.system import Levers, prepare
from ega_jax.data import pipeline
from ega_jax.phases.auction import AuctionTraining, request_of
from ega_jax.setting import part_of
from ega_jax.training.loop import Phase
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Params


class EGA(AuctionTraining):
    """The generative auction: one generator, aligned by policy gradient."""

    @property
    def allocation_config(self) -> AllocationConfig:
        """What is compiled into the allocation."""
        return AllocationConfig(
            generator=self.pretraining.generator_config,
            reward=self.reward_config,
            **part_of(self.settings.allocation, SearchSettings),
        )

    @property
    def models(self) -> Models:
        """Aligned generator, reward model, items."""
        return self.models_with(self.aligned)

    def models_with(self, generator: Params) -> Models:
        """What slates are found with when the generator is this one."""
        return Models(generator=generator, reward=self.reward, items=self.items)

    @functools.cached_property
    def aligned(self) -> Params:
        """The generator's parameters after the policy gradient (32); as they were without steps."""
        settings = self.settings.alignment
        if settings.joint_rows:
            return self.train_phase(self._joint_phase(), self.system)
        pretrained = self.pretraining.restore_generator()
        if not settings.num_steps:
            return pretrained
        trained = self.train_phase(self._alignment_phase(pretrained), self.system)
        _, frozen = alignment.split(pretrained, self.allocation_config.generator, settings.part)
        return alignment.join(trained, frozen)

    def alignment_loss(self, pretrained: Params) -> Callable:
        """The loss of the alignment phase, from which its trained parameters start."""
        models, part = self.models_with(pretrained), self.settings.alignment.part
        return auction_loss(
            models, self.allocation_config, self.levers, self._alignment_config(part)
        )

    def _alignment_config(self, part: str) -> AlignmentConfig:
        own = part_of(self.settings.alignment, AlignmentSettings) | {"part": part}
        return AlignmentConfig(**part_of(self.settings.allocation, TokenWeights), **own)

    def _alignment_phase(self, pretrained: Params) -> Phase:
        settings = self.settings.alignment
        generator = self.allocation_config.generator
        trained, _ = alignment.split(pretrained, generator, settings.part)
        optimizer = settings.optimizer()
        return Phase(
            name="alignment",
            init=lambda: TrainState.create(trained, optimizer, pretrained),
            step=make_train_step(self.alignment_loss(pretrained), optimizer, self.key(4)),
            batches=pipeline.train_batches(
                self.dataset,
                "align",
                batch_size=settings.batch_size,
                history_length=self.settings.data.history_length,
                seed=self.settings.seed,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            num_steps=settings.num_steps,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
        )

    def _joint_phase(self) -> Phase:
        """One stage instead of two (the ablation EGA-end), from fresh parameters.

        Every step adds the policy gradient on the first rows of its batch to the pre-training loss.
        There is no pre-trained policy: the KL penalty is from the policy itself, and is none.
        """
        rows = self.settings.alignment.joint_rows
        interest = self.pretraining.loss
        # No parameters are needed but those that the step is given.
        models = self.models_with(generator=None)
        auction = auction_loss(
            models, self.allocation_config, self.levers, self._alignment_config("all")
        )

        def loss(params: Params, variables, batch: dict[str, jax.Array], key: jax.Array):
            some = jax.tree.map(lambda x: x[:rows], batch)
            nll, (metrics, _) = interest(params, variables, batch, key)
            gain, (more, _) = auction(params, lax.stop_gradient(params), some, key)
            return nll + gain, (metrics | more, variables)

        return dataclasses.replace(self.pretraining.generator_phase(loss=loss), name="joint")


def auction_loss(
    models: Models, config: AllocationConfig, levers: Levers, settings: AlignmentConfig
) -> Callable:
    """The loss of the alignment phase: slates of the current policy, credited by (31).

    Args:
      models: generator, reward model, items.
      config: sizes of the allocation.
      levers: run-time settings that slates are chosen with.
      settings: of the loss; see `alignment.alignment_loss`.
    """

    def choose(params: Params, batch: dict[str, jax.Array]):
        current = dataclasses.replace(models, generator=params)
        requests = request_of(batch)
        offers = jax.vmap(lambda request: prepare(current, config, request))(requests)
        return contributions(current, config, offers, requests.bid, levers)

    index = candidates_of(config, levers)
    catalogue = models.items.catalogue
    return alignment.alignment_loss(config.generator, settings, catalogue, choose, index)
