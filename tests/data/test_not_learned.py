"""What each ad log lacks, by its summary."""

import dataclasses

from ega_jax.data.not_learned import not_learned
from ega_jax.data.schema import validate


def test_a_log_with_everything_lacks_nothing(ad_log, tmp_path):
    assert not_learned(validate(ad_log.write(tmp_path / "log"))) == []


def test_each_lack_is_named_once(ad_log, tmp_path):
    summary = validate(ad_log.write(tmp_path / "log"))
    lacking = {
        "longest_history": (0, "every history is empty"),
        "has_creatives": (False, "the log has no creatives"),
        "num_slots": (1, "slates have one slot"),
    }
    for field, (value, words) in lacking.items():
        (text,) = not_learned(dataclasses.replace(summary, **{field: value}))
        assert text.startswith(words)


def test_without_histories_the_context_may_be_all_there_is(ad_log, tmp_path):
    summary = validate(ad_log.write(tmp_path / "log"))
    blank = dataclasses.replace(summary, longest_history=0)
    assert "learn popularity alone" in not_learned(blank)[0]
    told = not_learned(dataclasses.replace(blank, context_width=3))
    assert "learn popularity and the context alone" in told[0]


def test_sequences_lack_nothing(make_sequences, tmp_path):
    assert not_learned(validate(make_sequences(images=False).write(tmp_path / "sequences"))) == []
