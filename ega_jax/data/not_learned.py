"""What an ad log does not hold, and what therefore cannot be learned from it."""

from ega_jax.data.schema import Summary


def not_learned(summary: Summary) -> list[str]:
    """Says what no model can learn from a valid folder, for the warnings of all commands.

    Args:
      summary: what `schema.validate` returned.
    """
    if summary.format != "ad_log":
        return []
    known = "popularity and the context" if summary.context_width else "popularity"
    checks = (
        (
            summary.longest_history == 0,
            f"every history is empty: the generator and the reward model learn {known} alone, "
            "nothing from what a user did before",
        ),
        (
            not summary.has_creatives,
            "the log has no creatives: each POI stands for its only one, and no choice of "
            "creatives is learned",
        ),
        (
            summary.num_slots == 1,
            "slates have one slot: nothing is learned of how the items of a slate affect each "
            "other",
        ),
    )
    return [text for holds, text in checks if holds]
