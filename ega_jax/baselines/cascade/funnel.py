"""The budgets of the cascade's funnel: how many ads each stage before the auction keeps."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from ega_jax.setting import setting


@dataclasses.dataclass(frozen=True)
class FunnelSettings:
    """The group `cascade.funnel`.

    A stage that would keep all that it is given is left out: with a share of 1 and the other
    numbers at least as large as a book, all ads are ranked.
    """

    recall_share: float = setting(0.1, above=0, at_most=1)  # Share of a book that TIGER recalls.
    least_recalled: int = setting(20, at_least=1)  # Recalled from a small book, if it has as many.
    most_recalled: int = setting(1000, at_least=1)  # Recalled from a large book.
    num_preranked: int = setting(50, at_least=1)  # Ads that the pre-ranker passes to HSTU.
    num_ranked: int = setting(20, at_least=1)  # Ads that HSTU passes to the auction.

    def most_of(self, largest: int) -> int:
        """The most ads that are recalled from books of at most `largest` ads, static."""
        budget = round(self.recall_share * largest)
        return min(max(budget, self.least_recalled), self.most_recalled, largest)

    def number_of(self, size: chex.Numeric) -> jax.Array:
        """The number of ads `[]` int32 to recall from a book of `size` ads."""
        budget = jnp.round(self.recall_share * jnp.asarray(size, jnp.float32)).astype(jnp.int32)
        return jnp.minimum(jnp.maximum(budget, self.least_recalled), self.most_recalled)


def highest(ads: jax.Array, score: jax.Array, number: int) -> jax.Array:
    """The places `[min(number, V)]` of the ads `[V]` of the highest scores; -1 is no ad.

    Ads come before what is no ad. Ties go to the lower place.
    """
    score = jnp.where(ads >= 0, score, -jnp.inf)
    return jax.lax.top_k(score, min(number, ads.size))[1]
