import os
import subprocess
import sys

import numpy as np
import public_logs
import pytest

from ega_jax.data.schema import validate


def run(*arguments, **environment):
    command = [sys.executable, "-m", "experiments.convert", *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def ratings(tmp_path):
    lines = [f"{user}\t{item}\t4\t{item}" for user in range(1, 7) for item in range(1, 6)]
    (tmp_path / "u.data").write_text("\n".join([*lines, "oops", lines[0]]))
    return tmp_path / "u.data"


def test_converts_with_the_users_own_embeddings(ratings, tmp_path):
    np.save(tmp_path / "vectors.npy", np.eye(5))
    (tmp_path / "names.txt").write_text("\n".join("12345"))
    done = run(
        "--source=movielens",
        f"--reviews={ratings}",
        "--out=~/out",
        "--embedding=npy",
        "--npy=~/vectors.npy",
        "--npy_ids=~/names.txt",
        "--keep_repeats",
        HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "1 repeats of (user, item, time) kept\n31 of 31 actions" in done.stdout
    assert "32 records read, 1 malformed and left out" in done.stdout
    assert f"{ratings}:31: " in done.stdout
    assert validate(tmp_path / "out").embedding_width == 5


def test_an_open_bandit_log_is_converted(tmp_path):
    log, items = public_logs.write_bandit(tmp_path)
    arguments = [f"--log={log}", f"--metadata={items}", f"--out={tmp_path / 'out'}"]
    done = run("--source=open_bandit", *arguments)
    assert done.returncode == 0, done.stderr
    assert "warning: every history is empty" in done.stdout
    assert validate(tmp_path / "out").num_rows == 60


def test_several_periods_of_auction_net_are_converted(tmp_path):
    logs = ",".join(map(str, public_logs.write_auction(tmp_path)))
    done = run("--source=auction_net", f"--log={logs}", "--out=~/out", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert validate(tmp_path / "out").num_rows == 2 * public_logs.NUM_REQUESTS


def test_help_tells_what_is_read_and_what_is_left_out():
    told = " ".join(run("--help").stdout.split())
    for text in ("--keep_repeats", "JSON array", "user,item,rating,timestamp", "latin-1", "ties"):
        assert text in told, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embedding=npy"], "--embedding=npy needs --npy and --npy_ids"),
        (["--embedding=tfidf"], "--embedding=tfidf needs --metadata"),
        (["--metadata=missing.dat"], "error: missing.dat: the file does not exist"),
        (["--source=amazon", "--metadata=x"], "error: x: the file does not exist"),
        (["--npy=x.npz", "--npy_ids=x", "--embedding=npy"], "x.npz: the file does not exist"),
        (["--source=netflix"], "should be one of <amazon|yelp|movielens|open_bandit|auction_net>"),
        (["--source=open_bandit"], "--source=open_bandit needs --log and takes no --reviews"),
        (["--log=x"], "--source=movielens needs --reviews and takes no --log"),
    ],
)
def test_mistakes_are_named(ratings, tmp_path, arguments, message):
    out = tmp_path / "out"
    done = run("--source=movielens", f"--reviews={ratings}", f"--out={out}", *arguments)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
