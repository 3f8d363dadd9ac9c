"""Which creative is shown next: Thompson sampling over clicks, simulated or read from a log, and its regret.

A click log is JSONL, a line an impression: `{"creative": "01", "clicked": true}`; more keys (time, audience,
place) are allowed and not read. C creatives, T impressions.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task
from lmjax.data.files import numbered_lines

_FORM = '{"creative": "01", "clicked": true}'
_DRAWS = 20_000
_SHOWN = 200  # points of a curve


class Clicks(NamedTuple):
  """What is known of each of C creatives: how often it was shown, and clicked."""

  names: list[str]
  shown_C: np.ndarray
  clicked_C: np.ndarray

  def draw(self, random: np.random.Generator) -> np.ndarray:
    """f64 [C]: a rate of each from its posterior, Beta(1 + clicks, 1 + others)."""
    return random.beta(1 + self.clicked_C, 1 + self.shown_C - self.clicked_C)

  def shares(self, random: np.random.Generator) -> np.ndarray:
    """f64 [C]: how likely each is the best, which is the share that Thompson sampling shows of it."""
    draws = random.beta(
      1 + self.clicked_C, 1 + self.shown_C - self.clicked_C, (_DRAWS, len(self.names))
    )
    return np.bincount(np.argmax(draws, axis=1), minlength=len(self.names)) / _DRAWS


def read_clicks(path: str) -> Clicks:
  """The counts of a click log; UserError at the first line that is none."""
  counts: dict[str, list[int]] = {}
  for number, line in numbered_lines('clicks', path):
    try:
      row = json.loads(line)
      name, clicked = row['creative'], row['clicked']
      good = isinstance(name, str) and (isinstance(clicked, bool) or clicked in (0, 1))
    except (ValueError, KeyError, TypeError):
      good = False
    if not good:
      raise UserError(f'--clicks={path}: line {number} is not of the form {_FORM}: mend or drop it')
    count = counts.setdefault(name, [0, 0])
    count[0] += 1
    count[1] += int(clicked)
  if not counts:
    raise UserError(f'--clicks={path} is empty: pass a click log, a line an impression')
  names = sorted(counts)
  shown, clicked = np.array([counts[name] for name in names]).T
  return Clicks(names, shown, clicked)


def simulate(
  rates_C: np.ndarray, impressions: int, random: np.random.Generator, *, thompson: bool
) -> np.ndarray:
  """The regret after each impression, f64 [T]: clicks that the best creative would have had more, expected.

  Thompson 1933: shows the one whose drawn rate is largest. Otherwise each in turn.
  """
  C = len(rates_C)
  clicks = Clicks([str(i) for i in range(C)], np.zeros(C), np.zeros(C))
  lost = np.zeros(impressions)
  for t in range(impressions):
    one = int(np.argmax(clicks.draw(random))) if thompson else t % C
    clicks.shown_C[one] += 1
    clicks.clicked_C[one] += random.random() < rates_C[one]
    lost[t] = rates_C.max() - rates_C[one]
  return np.cumsum(lost)


class Allocate(Task):
  """Says how often to show each creative of a click log."""

  clicks: str = leaf('', 'Click log: JSONL with creative and clicked of each impression.')
  seed: int = leaf(0, 'Of the draws.', low=0)

  def run(self, workdir: Path) -> Report:
    """The share of impressions that each creative is to get next."""
    need('clicks', self.clicks, 'FILE.jsonl, a line an impression')
    clicks = read_clicks(self.clicks)
    shares = clicks.shares(np.random.default_rng(self.seed))
    rows = []
    for name, shown, clicked, share in zip(*clicks, shares, strict=True):
      rows.append(
        {'creative': name, 'shown': int(shown), 'clicked': int(clicked), 'share': float(share)}
      )
      print(f'{name:20} {clicked:8,} of {shown:10,} clicked   show {share:6.1%}')
    return {'creatives': rows}


class Simulate(Task):
  """Shows creatives to a simulated audience, by Thompson sampling and each in turn."""

  rates: tuple[float, ...] = leaf(
    (0.02, 0.025, 0.03, 0.04), 'Click rates of the creatives.', low=0.0, high=1.0
  )
  impressions: int = leaf(20_000, 'Impressions of a run.', low=1)
  runs: int = leaf(5, 'Runs, each with draws of its own.', low=1)
  seed: int = leaf(0, 'Of the first run.', low=0)

  def run(self, workdir: Path) -> Report:
    """Mean regret, and its curve in `regret.svg`."""
    if len(self.rates) < 2:
      raise UserError(f'rates={self.rates} is one creative: give at least two, --rates=0.02,0.03')
    rates = np.array(self.rates)
    curves = {}
    for name in ('thompson', 'in turn'):
      runs = [
        simulate(
          rates,
          self.impressions,
          np.random.default_rng((self.seed, run)),
          thompson=name == 'thompson',
        )
        for run in range(self.runs)
      ]
      curves[name] = np.mean(runs, axis=0)
      print(
        f'{name:10} {curves[name][-1]:10.1f} clicks lost of {self.impressions * rates.max():,.0f}'
      )
    (workdir / 'regret.svg').write_text(draw_regret(curves), encoding='utf-8')
    return {
      'regret_thompson': float(curves['thompson'][-1]),
      'regret_in_turn': float(curves['in turn'][-1]),
      'best_possible': float(self.impressions * rates.max()),
    }


def draw_regret(curves: dict[str, np.ndarray]) -> str:
  """Curves over impressions as an SVG of 640 x 320 pixels."""
  top = max(float(curve[-1]) for curve in curves.values()) or 1.0
  parts = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 320" width="640" height="320" '
    'font-family="sans-serif" font-size="13" role="img" aria-label="Regret over impressions">',
    '<rect width="100%" height="100%" fill="#fff"/>',
    '<path d="M60 20V280H620" fill="none" stroke="#333"/>',
    '<text x="60" y="305">impressions: 0</text>',
    f'<text x="620" y="305" text-anchor="end">{max(map(len, curves.values())):,}</text>',
    f'<text x="66" y="32">clicks lost: {top:,.1f}</text>',
  ]
  tones: Sequence[Any] = ('#0a6e5c', '#b3402e')
  for (name, curve), tone in zip(curves.items(), tones, strict=True):
    picked = curve[np.linspace(0, len(curve) - 1, min(len(curve), _SHOWN)).astype(int)]
    across = np.linspace(60, 620, len(picked))
    points = ' '.join(
      f'{x:.1f},{280 - 240 * y / top:.1f}' for x, y in zip(across, picked, strict=True)
    )
    end = 280 - 240 * picked[-1] / top
    parts.append(f'<polyline points="{points}" fill="none" stroke="{tone}" stroke-width="2"/>')
    parts.append(f'<text x="614" y="{end - 6:.1f}" text-anchor="end" fill="{tone}">{name}</text>')
  return '\n'.join([*parts, '</svg>', ''])
