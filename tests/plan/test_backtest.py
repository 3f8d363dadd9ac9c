"""The time model against published results: near them, with the same slope, and right about changes."""

import pytest
from unassembled import unassembled

from lmjax.core import config
from lmjax.plan.backtest import ROWS, Backtest
from lmjax.plan.cards import CARDS

PUBLISHED_SLOPE = -0.021


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  task = config.override(Backtest(), {'gpus': (ROWS[0].gpus, ROWS[-1].gpus)})
  with unassembled():
    return task.run(tmp_path_factory.mktemp('backtest'))


@pytest.mark.slow
def test_the_table_has_the_constant_that_fits(found):
  assert CARDS['h100'].matmul == pytest.approx(found['fitted'], abs=0.01)


@pytest.mark.slow
def test_published_results_are_met_within_a_tenth(found):
  assert [row['gpus'] for row in found['rows']] == [128, 2048]
  assert all(abs(row['error']) < 0.1 for row in found['rows'])


@pytest.mark.slow
def test_the_slope_over_sizes_is_that_of_the_publications(found):
  assert abs(found['slope'] - PUBLISHED_SLOPE) < 0.02
  assert found['slope'] < 0


@pytest.mark.slow
def test_what_makes_a_run_slower_makes_the_model_slower(found):
  base, *others = found['what_ifs'].values()
  assert len(others) == 3
  assert all(other < 0.95 * base for other in others)


def test_every_published_row_says_what_it_leaves_open():
  assert [row.gpus for row in ROWS] == [128, 256, 512, 1024, 2048]
  assert all(row.source and row.gap for row in ROWS)
