"""The whole job on a log whose sessions have a context and propensities."""

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_auction import TINY, training
from tiny_runs import NUM_SLOTS, tiny_config, write_ad_log

from ega_jax.errors import UserError
from ega_jax.evaluation.interest import evaluator_of
from ega_jax.evaluation.serving import judges_of, served
from ega_jax.phases.context import FILE
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.requests import request_of
from ega_jax.phases.reward import weighting_report
from ega_jax.training.mesh import data_mesh

X, SHORT = 2, {"num_steps": 2, "checkpoint_every": 2}
WEIGHED = {"reward": TINY["reward"] | SHORT | {"propensity_weight": 0.5, "largest_weight": 3.0}}


@pytest.fixture(autouse=True, scope="module")
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


def recording_log(folder):
    """A log of random sessions with the optional columns."""
    path = write_ad_log(folder) / "sessions" / "part-0.parquet"
    table, rng = pq.read_table(path).drop_columns("context"), np.random.default_rng(0)
    told = {
        "context": list(np.float32(rng.normal([5.0, -1.0], [2.0, 0.1], (table.num_rows, X)))),
        "propensity": list(rng.uniform(0.1, 1.0, (table.num_rows, NUM_SLOTS))),
        "explored": rng.random(table.num_rows) < 0.1,
    }
    for name, values in told.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return folder


def test_from_a_log_with_contexts_to_slates(tmp_path):
    groups = TINY | WEIGHED | {"alignment": TINY["alignment"] | SHORT}
    groups |= {"payment": TINY["payment"] | SHORT}
    config = tiny_config(recording_log(tmp_path / "data"), kind="kmeans", **groups)
    pretraining = Pretraining(config, tmp_path / "run", data_mesh())
    params = pretraining.train_generator()
    assert params["context"]["kernel"].shape[0] == X
    scale = pretraining.generator_config.context
    np.testing.assert_allclose(scale.mean, [5.0, -1.0], rtol=0.2)
    assert (tmp_path / "run" / FILE).exists()
    figures = evaluator_of(pretraining)(params, pretraining.batches("test"))
    assert np.isfinite(list(figures.values())).all()

    run = training(config, tmp_path / "run")
    mechanism = run.mechanism
    assert mechanism.system.config.reward.context == scale
    report = weighting_report(run.dataset, config.reward)
    assert (report["propensity_weight"], report["largest_weight"]) == (0.5, 3.0)
    assert 1 < report["effective_sessions"] < 48
    batch = next(iter(run.sessions("test", 4, 4)))
    slate = mechanism.allocate(request_of(batch))
    assert (np.asarray(slate.items) >= 0).any()
    with pytest.raises(UserError, match="context is missing"):
        mechanism.allocate(request_of({n: x for n, x in batch.items() if n != "context"}))
    found = served(mechanism, run.sessions("test", 4, 4), judges_of(None))
    assert np.isfinite(found["model"]["rpm"])


def test_a_log_without_propensities_cannot_weigh(tmp_path):
    config = tiny_config(write_ad_log(tmp_path / "data"), kind="kmeans", **TINY | WEIGHED)
    run = training(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"propensity_weight is 0.5, but the log has no 'propensit"):
        _ = run.reward
    assert not (tmp_path / "run" / "reward").exists()
