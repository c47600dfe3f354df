"""How a decomposition is shown, and what the command refuses."""

import pytest
from absl.testing import flagsaver
from matplotlib import image

from experiments import decomposition
from experiments.common import workdirs

CASCADE = ("attainable", "recalled", "ranked", "listed", "placed", "shown", "paid")


def chain(*names):
    """A chain of which every slate loses a tenth."""
    return {
        name: {"currency": 5.0 - n / 2, "share": 1.0 - n / 10, "lost": 0.1 if n else 0.0}
        for n, name in enumerate(names)
    }


def test_every_loss_has_a_stage():
    stages = decomposition.stages_of(chain(*CASCADE))
    ranking = "pre-ranking and ranking"
    assert stages == ["", "recall", ranking, "auction", "allocation", "creatives", "prices"]
    alone = decomposition.stages_of(chain("attainable", "placed", "shown", "paid"))
    assert alone == ["", "choice of items", "creatives", "prices"]


def test_table_and_figure(capsys, tmp_path):
    decomposition.print_losses(chain(*CASCADE), "mca, 8 sessions")
    lines = capsys.readouterr().out.splitlines()
    (paid,) = [line for line in lines if "paid" in line]
    for text in ("2", "40.0 %", "10.0 %", "prices"):
        assert text in paid
    path = decomposition.draw_losses(chain(*CASCADE), tmp_path / "figures" / "decomposition.png")
    assert image.imread(path).std() > 0


def test_a_system_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(workdirs, "find_workdir", lambda: ({}, tmp_path))
    missing = pytest.raises(FileNotFoundError, match="no system 'mca'")
    with flagsaver.flagsaver(system="mca"), missing:
        decomposition.main()
