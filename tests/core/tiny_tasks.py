"""Tasks of milliseconds, with a leaf of every type, for tests that run them through `main`."""

import enum
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar, Literal

from lmjax.core.config import Config, leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task


class Color(enum.Enum):
  RED = 1
  BLUE = 2


class Inner(Config):
  """A part with a rule across its leaves."""

  size: int = leaf(4, 'How many.', low=1, high=8)
  step: int = leaf(2, 'How many at once.', low=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.size % self.step:
      raise UserError(f'size={self.size} is not a multiple of step={self.step}: pass step=1')


class Middle(Config):
  """A part in between."""

  inner: Inner = part(Inner(), 'Always there.')
  rare: Inner | None = part(None, 'Seldom there.')


class Source(Config):
  """A part whose leaves are flags of its owner."""

  files: str = leaf('some', 'What to read.')


class Tiny(Task):
  """Leaves a file, and a report."""

  resumes: ClassVar[bool] = True

  width: int = leaf(8, 'Width.', low=1)
  rate: float = leaf(0.1, 'Rate.', above=0, high=1)
  flag: bool = leaf(True, 'Yes or no.')
  text: str = leaf('', 'Any text.')
  kind: Literal['slow', 'fast'] = leaf('slow', 'How.')
  level: Literal[1, 2] = leaf(1, 'How much.')
  color: Color = leaf(Color.RED, 'What color.')
  spare: Color | None = leaf(None, 'What other color.')
  limit: int | None = leaf(None, 'Largest.', low=0)
  note: str | None = leaf(None, 'A text or none.')
  sizes: tuple[int, ...] = leaf((1, 2), 'Several.', low=0)
  pair: tuple[int, float] = leaf((1, 0.5), 'Two.')
  colors: tuple[Color, ...] = leaf((), 'Several colors.')
  words: tuple[str, ...] = leaf((), 'Several words.')
  source: Source = part(Source(), 'What to read.', inline=True)
  middle: Middle = part(Middle(), 'A part of parts.')
  present: Inner | None = part(Inner(), 'A part that is on.')
  absent: Inner | None = part(None, 'A part that is off.')
  pace: int = leaf(1, 'How to run.', run=True)
  manner: Inner = part(Inner(), 'How to run.', run=True)
  exit: int | None = leaf(None, 'Leaves Python with this code.', run=True)

  def run(self, workdir: Path) -> Report:
    (workdir / 'ran').write_text(str(self.width))
    if self.exit is not None:
      sys.exit(self.exit)
    return {'width': self.width, 'loss': float('nan')}


class Once(Task):
  """Does not resume."""

  width: int = leaf(8, 'Width.', low=1)

  def run(self, workdir: Path) -> Report:
    return {'width': self.width}


def tiny() -> Tiny:
  return Tiny()


def once() -> Once:
  return Once()


def no_task() -> int:
  return 3


def broken() -> Tiny:
  return [][1]


def out_of_range() -> Tiny:
  return Tiny(width=0)


def interrupted() -> Tiny:
  os.kill(os.getpid(), signal.SIGINT)
  return Tiny()
