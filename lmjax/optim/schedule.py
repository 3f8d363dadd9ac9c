"""Courses of the learning rate over a run, as parts that build an optax schedule.

A schedule maps a step, from 0, to a multiple of the peak learning rate in [0, 1], so that one
course serves groups of parameters with different peaks. Its stretches are shares of the run: another
number of steps keeps its shape. Knows no optimizer and no learning rate.

Both courses rise over W warm-up steps as (step + 1) / (W + 1): the first update is never spent at a
learning rate of 0, and neither is the last, since the course ends one step after it.
"""

import optax

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError


class Cosine(Config):
  """Linear warm-up, then half a cosine down to `final_fraction` (Loshchilov & Hutter 2017,
  arXiv:1608.03983 eq. 5, without restarts)."""

  warmup_fraction: float = leaf(0.02, 'Share of all steps that the warm-up takes.', low=0, high=0.9)
  final_fraction: float = leaf(0.1, 'Share of the peak at the end of the run.', low=0, high=1)

  def build(self, steps: int) -> optax.Schedule:
    """The course of a run of `steps` updates."""
    warmup_steps = int(self.warmup_fraction * steps)
    fall = optax.cosine_decay_schedule(1.0, steps - warmup_steps, alpha=self.final_fraction)
    return optax.join_schedules([_warmup(warmup_steps), fall], [warmup_steps])


class WarmupStableDecay(Config):
  """Linear warm-up, a plateau at the peak, then a linear fall to `final_fraction` (MiniCPM, Hu et
  al. 2024, arXiv:2404.06395 sec. 4; linear rather than exponential as in Hägele et al. 2024,
  arXiv:2405.18392)."""

  warmup_fraction: float = leaf(0.02, 'Share of all steps that the warm-up takes.', low=0, high=0.9)
  decay_fraction: float = leaf(0.2, 'Share of all steps that the fall takes.', above=0, high=1)
  final_fraction: float = leaf(0.0, 'Share of the peak at the end of the run.', low=0, high=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.warmup_fraction + self.decay_fraction > 1:
      raise UserError(
        f'warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} overlap: '
        f'pass shares that add to 1 or less, such as warmup_fraction={1 - self.decay_fraction:.2g}'
      )

  def build(self, steps: int) -> optax.Schedule:
    """The course of a run of `steps` updates."""
    warmup_steps = int(self.warmup_fraction * steps)
    fall_steps = min(max(1, round(self.decay_fraction * steps)), steps - warmup_steps)
    plateau = optax.constant_schedule(1.0)
    fall = optax.linear_schedule(1.0, self.final_fraction, fall_steps)
    courses = [_warmup(warmup_steps), plateau, fall]
    return optax.join_schedules(courses, [warmup_steps, steps - fall_steps])


def _warmup(warmup_steps: int) -> optax.Schedule:
  return optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
