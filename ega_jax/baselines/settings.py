"""The whole tree of settings: those of the phases and of the compared systems."""

import dataclasses

from ega_jax.baselines.cascade.cga import CGAPhaseSettings
from ega_jax.baselines.cascade.cross_dqn import CrossDQNPhaseSettings
from ega_jax.baselines.cascade.funnel import FunnelSettings
from ega_jax.baselines.cascade.hstu import HSTUPhaseSettings
from ega_jax.baselines.cascade.peri_cr import PeriCRPhaseSettings
from ega_jax.baselines.cascade.tiger import TigerSettings
from ega_jax.baselines.cascade.two_tower import TwoTowerPhaseSettings
from ega_jax.errors import UserError
from ega_jax.phases.settings import PhaseSettings
from ega_jax.setting import SYSTEM, setting


@dataclasses.dataclass(frozen=True)
class OneRecSettings:
    """The group `one_rec`; OneRec's other settings are in the group `alignment`."""

    strength: float = setting(0.1, above=0)  # DPO's beta: larger stays closer to the reference.


@dataclasses.dataclass(frozen=True)
class CascadeSettings:
    """The group `cascade`: the stages of MCA; GR uses Peri-CR too."""

    funnel: FunnelSettings = setting(FunnelSettings())
    tiger: TigerSettings = setting(TigerSettings())
    two_tower: TwoTowerPhaseSettings = setting(TwoTowerPhaseSettings())
    hstu: HSTUPhaseSettings = setting(HSTUPhaseSettings())
    peri_cr: PeriCRPhaseSettings = setting(PeriCRPhaseSettings())
    cga: CGAPhaseSettings = setting(CGAPhaseSettings())
    cross_dqn: CrossDQNPhaseSettings = setting(CrossDQNPhaseSettings())


@dataclasses.dataclass(frozen=True)
class Settings(PhaseSettings):
    """The settings of a workdir and its systems; configs and commands build it.

    `ega_jax.systems` checks the settings that depend on the kind of system.
    """

    one_rec: OneRecSettings = setting(OneRecSettings(), binds=SYSTEM)
    cascade: CascadeSettings = setting(CascadeSettings(), binds=SYSTEM)


def whole(settings: PhaseSettings) -> Settings:
    """Checks that settings include the baselines' groups, and returns them.

    Raises:
      TypeError: the settings are those of the phases only.
    """
    if not isinstance(settings, Settings):
        raise TypeError(f"baselines read Settings, found {type(settings).__name__}")
    return settings


def check_stages(settings: PhaseSettings) -> None:
    """Refuses training in one stage; only EGA supports it.

    Raises:
      UserError: `alignment.one_stage` is True.
    """
    if settings.alignment.one_stage:
        raise UserError("config.alignment.one_stage: EGA alone trains in one stage: set it False")
