"""What is wrong with a step, for people."""

from typing import NamedTuple

GIB, MIB = 2**30, 2**20


class Finding(NamedTuple):
  """Something that a step need not do or hold.

  Attributes:
    what: is wrong, with numbers.
    tensor: the guilty one, as a user knows it: 'layers/mlp/up', 'optimizer moments of embed'.
    where: 'lmjax/ops/loss.py:73' and what JAX calls it there.
    cost: in memory, on the wire or in time.
    fix: flags to pass, or what to add where.
  """

  what: str
  tensor: str
  where: str
  cost: str
  fix: str


class Weighed(NamedTuple):
  """A finding and the share of the step's time, or of a device's bytes, that it costs."""

  share: float
  finding: Finding


def size(count: float) -> str:
  """'4.0 GiB', or '12 MiB' of bytes."""
  return f'{count / GIB:.1f} GiB' if count >= GIB / 10 else f'{count / MIB:.1f} MiB'


def few(names: list[str]) -> str:
  """'a, b, c and 4 more'."""
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def file_of(where: str) -> str:
  """'lmjax/ops/loss.py' of where something is."""
  return where.split(' ')[0].split(':')[0]
