"""How the tokens of a request are drawn, and a step's draws as the arrays that a device is given.

Knows nothing about models or text. R draws, V vocab.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lmjax.generate.sampler import Draws, Sampler
from lmjax.generate.scheduler import Running

_MOST_K = 2**31 - 1  # as an i32 holds; more than there are tokens keeps all


class Constraint(Protocol):
  """What limits the tokens of one sequence by those before.

  A `UserError` of either ends its request alone, with the reason 'constraint'.
  """

  def allowed(self) -> np.ndarray:
    """bool [V], which tokens may come next; computed while the device is at the step."""
    ...

  def accept(self, token: int) -> bool:
    """Takes in the token that came; True where none may follow."""
    ...


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the tokens of a request are drawn.

  Attributes:
    sampler: temperature and filters.
    seed, choice: the draw at a position is a function of (seed, choice, position) alone.
    presence, frequency: subtracted from the logit of a token that was added before, once, and for
      each time it was.
    repetition: divides the logit, or multiplies it where negative, of every token of prompt and
      answer (Keskar et al. 2019, arXiv:1909.05858); 1 is none.
    bias: added to the logits of tokens.
    alternatives: of how many likeliest tokens the log-probabilities are told, up to 20.
    constraint: of this request alone, or None.
  """

  sampler: Sampler = dataclasses.field(default_factory=Sampler)
  seed: int = 0
  choice: int = 0
  presence: float = 0.0
  frequency: float = 0.0
  repetition: float = 1.0
  bias: dict[int, float] = dataclasses.field(default_factory=dict)
  alternatives: int = 0
  constraint: Constraint | None = None

  @property
  def plain(self) -> bool:
    """Whether the logits are drawn from as the model gives them."""
    shaped = self.presence or self.frequency or self.repetition != 1.0 or self.bias
    return not shaped and self.constraint is None


def prepare_draws(
  owners: Sequence[tuple[Running, int]], R: int, V: int
) -> tuple[Draws, tuple[np.ndarray, np.ndarray] | None, dict[Running, Exception]]:
  """What R draws need, the first of them of `owners`, each a sequence and the position drawn for.

  Returns:
    The settings as arrays; f32 [R, V] twice, what divides the logits and what is added to them, or
    None; and what is wrong with sequences whose settings or constraint give nothing.
  """
  none = _draw_of(Settings(), 0)
  rows, failed = [none] * R, {}
  is_plain = all(running.request.settings.plain for running, _ in owners)
  shape = None if is_plain else no_shape(R, V)
  for row, (running, position) in enumerate(owners):
    settings: Settings = running.request.settings
    try:
      rows[row] = _draw_of(settings, position)
      if shape is not None and not settings.plain:
        _add_shape(running, shape[0][row], shape[1][row])
    except Exception as error:  # of this request alone
      failed[running] = error
  return _stack(rows), shape, failed


def draws_of(settings: Sequence[tuple[Settings, int]]) -> Draws:
  """The arrays of each row's settings and of the position it draws for."""
  return _stack([_draw_of(each, position) for each, position in settings])


def _draw_of(settings: Settings, position: int) -> tuple[np.generic, ...]:
  """One row of `Draws`; raises OverflowError where a number does not fit."""
  sampler = settings.sampler
  return (
    np.float32(sampler.temperature),
    np.int32(min(sampler.top_k or 0, _MOST_K)),
    np.float32(sampler.top_p or 1.0),
    np.float32(sampler.min_p or 0.0),
    np.uint32(settings.seed),
    np.uint32(settings.choice),
    np.int32(position),
  )


def _stack(rows: Sequence[tuple[np.generic, ...]]) -> Draws:
  columns: Any = map(np.array, zip(*rows, strict=True))
  return Draws(*columns)


def no_shape(R: int, V: int) -> tuple[np.ndarray, np.ndarray]:
  """What divides the logits [R, V] and what is added to them where nothing changes them."""
  return np.ones((R, V), np.float32), np.zeros((R, V), np.float32)


def _add_shape(running: Running, divide_V: np.ndarray, add_V: np.ndarray) -> None:
  """Writes what the settings of a sequence do to its logits."""
  settings: Settings = running.request.settings
  divide_V[np.unique(running.tokens)] = settings.repetition
  seen, times = np.unique(running.tokens[len(running.request.prompt) :], return_counts=True)
  add_V[seen.astype(int)] -= settings.presence + settings.frequency * times
  for token, bias in settings.bias.items():
    add_V[token] += bias
  if settings.constraint is not None:
    add_V[~settings.constraint.allowed()] = -np.inf
