"""The training benchmark: its flags, our side of it, and what is reported of a contest."""

import pytest

from lmjax.bench.contest import Contest, Side, Turn
from lmjax.bench.train import BenchTrain, figures, report, step_turn
from lmjax.core.errors import UserError

SHAPE = {'width': 16, 'layers': 1, 'heads': 2, 'mlp': 32, 'vocab': 64, 'length': 32, 'rows': 2}


def test_steps_that_are_no_whole_rows_are_refused():
  with pytest.raises(UserError, match='nearest are 256 and 512'):
    BenchTrain(tokens=(300,))


def test_our_side_takes_steps_and_says_how_long_one_is():
  turn = step_turn({**SHAPE, 'dtype': 'float32', 'seconds': 0.01})
  assert 0 < turn()['seconds'] < 60


def test_ratios_are_of_one_round_and_the_worst_cell_counts():
  sides = [Side(name, []) for name in ('lmjax', 'peak', 'torch_eager')]
  turn = lambda **said: Turn(said, 0.0)
  rounds = {
    'lmjax': [turn(seconds=1.0), turn(seconds=2.0), turn(seconds=1.0)],
    'peak': [turn(flops_per_second=100.0, gflops=1.0)] * 3,
    'torch_eager': [turn(seconds=2.0), turn(seconds=4.0), turn(seconds=3.0)],
  }
  cell = figures(Contest(rounds), sides, 50.0, 'f32')
  assert cell['ratios']['f32_vs_torch_eager'] == {'median': 2.0, 'low': 2.0, 'high': 3.0}
  assert cell['ratios']['f32_of_peak']['median'] == 0.5
  worse = {**cell, 'ratios': {'f32_of_peak': {'median': 0.4}}}
  ratios = report({'small': cell, 'large': worse})['ratios']
  assert ratios == {'f32_vs_torch_eager': 2.0, 'f32_of_peak': 0.4}
