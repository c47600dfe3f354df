"""Item embeddings for the stages of the cascade, from semantic codes and raw features."""

import jax
from flax import linen as nn

from ega_jax.generation.codes import codes_of, sum_of_codes
from ega_jax.generation.transformer import linear
from ega_jax.reward.network import Items


class ItemEmbedding(nn.Module):
    """Embeds POIs and creatives from their codes and their raw features."""

    num_codes: int
    num_layers: int
    width: int
    dtype: str

    def setup(self):
        """Declares a code table and a projection of features for POIs and for creatives."""
        small = nn.initializers.normal(self.width**-0.5)
        shape = (self.num_layers * self.num_codes, self.width)
        self.poi_table = self.param("poi_table", small, shape)
        self.creative_table = self.param("creative_table", small, shape)
        self.poi_in, self.creative_in = (linear(self.width, self.dtype) for _ in range(2))

    def poi(self, items: Items, ids: jax.Array) -> jax.Array:
        """Embeds POIs `[...]` as `[..., D]`; results of negative ids have no meaning."""
        tokens = sum_of_codes(self.poi_table, codes_of(items.catalogue.poi_codes, ids))
        return tokens.astype(self.dtype) + self.poi_in(items.poi(ids))

    def creative(self, items: Items, ids: jax.Array) -> jax.Array:
        """Embeds creatives `[...]` as `[..., D]`; 0 for negative ids."""
        codes = codes_of(items.catalogue.creative_codes, ids)
        tokens = sum_of_codes(self.creative_table, codes).astype(self.dtype)
        return (tokens + self.creative_in(items.creative(ids))) * (ids >= 0)[..., None]
