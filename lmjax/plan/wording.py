"""What terminal and page say alike of a plan: numbers for people, verdicts, what a step is made of.

Every figure carries where it is from: compiled, modelled or given.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmjax.core.task import Report

UNKNOWN = '-'
# Where the figures that have no label of their own are from.
SOURCES = {
  'peak_gib': 'compiled',
  'hbm_gib': 'given',
  'tokens_per_second': 'modelled',
  'mfu': 'modelled',
  'days': 'modelled',
  'dollars': 'modelled',
  'goodput': 'modelled',
  'exposed_gib': 'modelled',
}
GROUPS = {
  'program': 'program',
  'memory': 'memory, closer',
  'time': 'time',
  'failures': 'failures',
  'sites': 'data centres',
  'money': 'money',
}

_RUN = 'python -m lmjax.main --experiment='


def number(value: Any, digits: int | None = None) -> str:
  """A value for a person: `-` for None, `12 M` from a million on, else 4 figures or `digits` decimals."""
  if value is None or isinstance(value, str):
    return UNKNOWN if value is None else value
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  for size, suffix in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
    if size <= abs(value) < 1e15:
      scaled = value / size
      return f'{scaled:.4g} {suffix}' if digits is None else f'{scaled:.{digits}f} {suffix}'
  if digits is not None:
    return f'{value:,.{digits}f}'
  return f'{value:,.0f}' if 1000 <= abs(value) < 1e6 or value == 0 else f'{value:.4g}'


def dollars(value: float | None) -> str:
  return UNKNOWN if value is None else f'${number(value)}'


def percent(value: float | None) -> str:
  return UNKNOWN if value is None else f'{value:.1%}'


def quantity(value: Any, unit: str) -> str:
  """A figure with its unit: `3.46 GiB`, `$13 M`, `93%`."""
  if value is None:
    return UNKNOWN
  if unit == '$':
    return dollars(value)
  return f'{number(value)}{"" if unit in ("", "%") else " "}{unit}'


def mesh_text(mesh: Mapping[str, int]) -> str:
  """The axes that split anything: `data=10 fsdp=128`."""
  return ' '.join(f'{axis}={n}' for axis, n in mesh.items() if n > 1) or 'one device'


def verdict(report: Report) -> tuple[str, str]:
  """Whether the program fits, and by how much not."""
  peak, offered = report['peak_gib'], report['hbm_gib']
  if peak is None or offered is None:
    return 'peak', f'{quantity(peak, "GiB")} a device'
  if report['fits']:
    return 'fits', f'{peak:.1f} of {offered:.1f} GiB'
  return 'does not fit', f'by {peak - offered:.1f} GiB: {peak:.1f} of {offered:.1f}'


def subject(report: Report) -> str:
  """What was planned, on what."""
  return f'{report["target"]} on {report["gpus"]:,} x {report["accelerator"]}'


def exposed(timeline: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
  """Where the network is busy and computing waits, as (start, end) in ms."""
  computing = _spans(row for row in timeline if row['stream'] == 'compute')
  found = []
  for start, end in _spans(row for row in timeline if row['stream'] == 'network'):
    for busy, free in computing:
      if start < min(busy, end):
        found.append((start, min(busy, end)))
      start = max(start, free)
    if start < end:
      found.append((start, end))
  return found


def step_ms(timeline: Sequence[Mapping[str, Any]]) -> float:
  return max((row['start_ms'] + row['ms'] for row in timeline), default=0.0)


def breakdown(timeline: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
  """What the milliseconds of a step go to: kinds of computing, longest first, then waiting."""
  kinds: Counter[str] = Counter()
  for row in timeline:
    if row['stream'] == 'compute':
      kinds[row['kind']] += row['ms']
  waiting = sum(end - start for start, end in exposed(timeline))
  idle = step_ms(timeline) - sum(kinds.values()) - waiting
  rest = [('waits for the network', waiting), ('idle', idle)]
  return [*kinds.most_common(), *((name, ms) for name, ms in rest if ms > 1e-3)]


def ranked(candidates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The best first, then the fastest; those that do not fit last."""
  speed = lambda each: each['tokens_per_second'] or 0.0
  return sorted(candidates, key=lambda each: (not each['best'], not each['fits'], -speed(each)))


def next_command(report: Report) -> tuple[str, list[str]]:
  """The command to try next: what it does, and its words, quoted for a shell."""
  target = shlex.quote(report['target'])
  best = next((each for each in report['candidates'] if each['best'] and each['fits']), None)
  mends = [change['flags'] for change in report.get('changes') or [] if change['fits']]
  if report['fits'] is False and (mends or not best):
    words = [*f'{_RUN}plan'.split(), f'--target={target}', f'--gpus={report["gpus"]}']
    words.append(f'--accelerator={report["accelerator"]}')
    if mends:
      return 'plan with what makes it fit', [*words, f'--target_flags={shlex.quote(mends[0])}']
    return 'plan with more GPUs', words
  mesh = [f'--mesh.{axis}={n}' for axis, n in report['mesh'].items()]
  flags = shlex.split(best['flags']) if best and 'flags' in best else mesh
  return 'run it there', [*f'{_RUN}{target}'.split(), *map(shlex.quote, flags)]


def _spans(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
  """The time that rows cover, in order and without overlaps."""
  merged: list[tuple[float, float]] = []
  for start, end in sorted((row['start_ms'], row['start_ms'] + row['ms']) for row in rows):
    if merged and start <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
    else:
      merged.append((start, end))
  return merged
