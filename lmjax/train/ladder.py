"""`posts_ladder`: what small models say of a larger one, before it is trained.

Models that differ in width alone are trained on the same number of tokens, each at several learning
rates. Two laws are fitted: the best learning rate falls as a power of the width (for Adam on hidden
matrices theory says 1 / width: muP, Yang et al. 2022, arXiv:2203.03466; of one learning rate for all
parameters the power is measured), and the loss as L(N) = E + A / N^a (Kaplan et al. 2020,
arXiv:2001.08361; Hoffmann et al. 2022, arXiv:2203.15556). Then a size that was in neither is predicted,
trained once at the learning rate that the law gives, and the error stated.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmjax.core.clock import duration_text
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.optim.transfer import PUBLISHED_RATE, PUBLISHED_WIDTH, WidthLaw

_HEAD = 32


class Ladder(Task):
  """Trains sizes of a model at several learning rates, fits laws, and predicts and trains one more."""

  resumes: ClassVar[bool] = True

  target: str = leaf('posts_rung', 'The experiment whose width is changed.')
  widths: tuple[int, ...] = leaf((64, 96, 128, 192), 'Sizes to fit the laws to.', low=_HEAD)
  predicted: int = leaf(256, 'Width of the model that is predicted.', low=_HEAD)
  rates: tuple[float, ...] = leaf(
    (1.5e-3, 3e-3, 6e-3, 12e-3), 'Learning rates that each size is tried at.', above=0.0
  )
  steps: int = leaf(400, 'Steps of each run.', low=10)
  update: bool = leaf(False, 'Write where large experiments read their learning rate.', run=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if len(set(self.widths)) < 3 or len(set(self.rates)) < 3:
      raise UserError(
        f'{len(self.widths)} widths and {len(self.rates)} rates are too few to fit laws to: '
        'pass three of each or more'
      )
    for width in (*self.widths, self.predicted):
      if width % _HEAD:
        below = max(_HEAD, width // _HEAD * _HEAD)
        raise UserError(
          f'width {width} is not a multiple of {_HEAD}: pass {below} or {below + _HEAD}'
        )

  def run(self, workdir: Path) -> Report:
    """Prints a line for each run; runs that are finished in `workdir` are not repeated."""
    runs = [(width, rate) for width in self.widths for rate in self.rates]
    tried = []
    for number, (width, rate) in enumerate(runs):
      print(f'run {number + 1} of {len(runs) + 1}: ', end='', flush=True)
      tried.append(self._train(width, rate, workdir))
    best = {width: best_of([run for run in tried if run.width == width]) for width in self.widths}
    for width, one in best.items():
      if one.rate in (min(self.rates), max(self.rates)):
        print(
          f'width {width} is best at {one.rate:.3g}, the last rate that was tried: add one beyond it'
        )
    rate_law = fit_rates({width: one.rate for width, one in best.items()})
    losses = [one.bits_per_byte for one in best.values()]
    loss_law = fit_losses([one.params for one in best.values()], losses)
    print(f'run {len(runs) + 1} of {len(runs) + 1}, predicted: ', end='', flush=True)
    last = self._train(self.predicted, rate_law.peak_lr(self.predicted), workdir)
    expected = loss_law.at(last.params)
    report = {
      'runs': [run._asdict() for run in tried],
      'best': [one._asdict() for one in best.values()],
      'rate_law': rate_law._asdict(),
      'loss_law': loss_law._asdict(),
      'predicted': {**last._asdict(), 'expected_bits_per_byte': expected},
      'error': last.bits_per_byte - expected,
      'relative_error': last.bits_per_byte / expected - 1,
    }
    if self.update:
      rate_law.through(PUBLISHED_WIDTH, PUBLISHED_RATE).commit(self._source(rate_law))
    print(
      f'best learning rate: {rate_law.peak_lr(128):.2g} at width 128, times '
      f'(128 / width)^{rate_law.exponent:.2f}\n'
      f'loss: {loss_law.floor:.3f} + {loss_law.scale:.3g} / parameters^{loss_law.exponent:.3f}\n'
      f'width {self.predicted}: {expected:.4f} bits per byte expected, {last.bits_per_byte:.4f} '
      f'reached, {report["relative_error"]:+.2%}'
    )
    return report

  def _source(self, law: WidthLaw) -> str:
    widths = f'{self.target} at widths {", ".join(map(str, self.widths))}, {self.steps} steps'
    return (
      f'from the best rate of posts_ladder ({widths}) to the {PUBLISHED_RATE:.1g} of Llama 3 8B at width '
      f'{PUBLISHED_WIDTH} (arXiv:2407.21783, table 3, as two notes quote it), where the exponent '
      f'{law.exponent:.2f} of the ladder alone would have {law.peak_lr(PUBLISHED_WIDTH):.2g}'
    )

  def _train(self, width: int, rate: float, workdir: Path) -> 'Rung':
    """One run to its end, in a process of its own."""
    folder = workdir / f'width-{width}-rate-{rate:.3g}'
    if not (folder / 'report.json').exists():
      self._start(width, rate, folder, workdir / 'runs.log')
    report = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
    names = ('params', 'bits_per_byte', 'train_seconds')
    rung = Rung(width, rate, *(report[name] for name in names))
    took = duration_text(rung.seconds)
    print(
      f'width {width} at {rate:.3g}: {rung.bits_per_byte:.4f} bits per byte, {took}', flush=True
    )
    return rung

  def _start(self, width: int, rate: float, folder: Path, log: Path) -> None:
    heads = width // _HEAD
    flags = {
      'model.width': width,
      'model.heads': heads,
      'model.kv_heads': heads,
      'model.head_dim': _HEAD,
      'model.mlp': 3 * width,
      'optimizer.peak_lr': rate,
      'steps': self.steps,
      'evaluate_every': self.steps + 1,
      'samples': 0,
      'baselines': 'false',
      'workdir': folder,
    }
    command = [sys.executable, '-m', 'lmjax.main', f'--experiment={self.target}']
    with log.open('a') as file:
      ended = subprocess.run(
        [*command, *(f'--{name}={value}' for name, value in flags.items())],
        stdout=file,
        stderr=file,
        check=False,
      )
    if ended.returncode:
      raise UserError(f'{self.target} ended with exit code {ended.returncode}: see {log}')


class Rung(NamedTuple):
  """A run that was trained to its end."""

  width: int
  rate: float
  params: int
  bits_per_byte: float
  seconds: float


class LossLaw(NamedTuple):
  """Loss of a model of N parameters: floor + scale / N^exponent."""

  floor: float
  scale: float
  exponent: float

  def at(self, params: float) -> float:
    return self.floor + self.scale * params**-self.exponent


def best_of(runs: Sequence[Rung]) -> Rung:
  """The lowest point of a parabola in log(rate) through the best run of a width and the two beside it.

  That is the best run itself where it has the lowest or highest rate that was tried.
  """
  runs = sorted(runs, key=lambda run: run.rate)
  best = min(range(len(runs)), key=lambda at: runs[at].bits_per_byte)
  if best in (0, len(runs) - 1):
    return runs[best]
  beside = runs[best - 1 : best + 2]
  curve, slope, level = np.polyfit(
    [math.log(run.rate) for run in beside], [run.bits_per_byte for run in beside], 2
  )
  rate, lowest = math.exp(-slope / (2 * curve)), level - slope**2 / (4 * curve)
  return runs[best]._replace(rate=rate, bits_per_byte=float(lowest))


def fit_rates(best: Mapping[int, float]) -> WidthLaw:
  """The power of the width through the best learning rate of each."""
  widths, rates = np.log(list(best)), np.log(list(best.values()))
  power, _ = np.polyfit(widths, rates, 1)
  middle, rate = (math.exp(float(np.mean(x))) for x in (widths, rates))
  return WidthLaw(width=middle, rate=rate, exponent=-float(power))


def fit_losses(params: Sequence[int], losses: Sequence[float]) -> LossLaw:
  """The law of least squares with a floor of 0 or more; exponents from 0.02 to 2 are searched."""
  found: list[tuple[float, LossLaw]] = []
  ys = np.asarray(losses)
  for exponent in np.geomspace(0.02, 2.0, 400):
    xs = np.asarray(params, float) ** -exponent
    scale, floor = np.polyfit(xs, ys, 1)
    if floor < 0:
      floor, scale = 0.0, float(xs @ ys / (xs @ xs))
    law = LossLaw(float(floor), float(scale), float(exponent))
    missed: Any = np.sum((law.floor + law.scale * xs - ys) ** 2)
    found.append((float(missed), law))
  return min(found)[1]
