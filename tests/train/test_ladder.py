"""The laws of the ladder: found again where they were put in, and refused where they cannot be fitted."""

import math

import pytest

from lmjax.core import registry
from lmjax.core.errors import UserError
from lmjax.optim import transfer
from lmjax.optim.transfer import WidthLaw
from lmjax.train.ladder import Ladder, LossLaw, Rung, best_of, fit_losses, fit_rates


def test_a_law_of_losses_is_found_again():
  law = LossLaw(floor=1.2, scale=40.0, exponent=0.3)
  sizes = [4e5, 7e5, 1.1e6, 2.1e6]
  found = fit_losses(sizes, [law.at(size) for size in sizes])
  assert found.at(3.4e6) == pytest.approx(law.at(3.4e6), abs=1e-3)


def test_a_floor_is_never_negative():
  found = fit_losses([1e5, 2e5, 4e5, 8e5], [4.0, 3.0, 2.0, 1.0])
  assert found.floor >= 0


def test_the_best_rate_of_each_width_gives_the_power():
  law = WidthLaw(width=128, rate=4e-3, exponent=0.7)
  rates = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
  off = lambda width, rate: 2.0 + 0.1 * math.log(rate / law.peak_lr(width)) ** 2
  best = {
    width: best_of([Rung(width, rate, 1, off(width, rate), 1.0) for rate in rates])
    for width in (96, 128, 192)
  }
  assert [one.bits_per_byte for one in best.values()] == pytest.approx([2.0] * 3)
  found = fit_rates({width: one.rate for width, one in best.items()})
  assert found.exponent == pytest.approx(0.7)
  assert found.peak_lr(256) == pytest.approx(law.peak_lr(256))


def test_the_last_rate_that_was_tried_is_taken_where_it_is_best():
  falls = [Rung(64, rate, 1, 1 / rate, 1.0) for rate in (1e-3, 2e-3, 4e-3)]
  assert best_of(falls) == falls[-1]


def test_too_few_sizes_are_refused():
  with pytest.raises(UserError, match='three of each or more'):
    Ladder(widths=(64, 96))


def test_a_width_without_whole_heads_is_refused():
  with pytest.raises(UserError, match='pass 96 or 128'):
    Ladder(predicted=100)


def test_large_experiments_take_their_rate_from_the_committed_law():
  large = ('posts_dense_1b', 'posts_dense_8b', 'posts_dense_70b', 'posts_moe_314b')
  for task in map(registry.find, large):
    assert task.optimizer.peak_lr == transfer.peak_lr(task.model.width)
  rates = [registry.find(name).optimizer.peak_lr for name in large[:3]]
  assert rates == sorted(set(rates), reverse=True)


def test_a_law_is_carried_on_to_a_rate_that_was_published():
  law = WidthLaw(width=128, rate=4e-3, exponent=0.5).through(4096, 4e-4)
  assert law.peak_lr(128) == pytest.approx(4e-3)
  assert law.peak_lr(4096) == pytest.approx(4e-4)
  assert law.exponent == pytest.approx(math.log(10) / math.log(32))


def test_what_the_ladder_commits_is_read_back(tmp_path):
  path = tmp_path / 'transfer.json'
  law = WidthLaw(width=128, rate=4e-3, exponent=0.7)
  law.commit('a test', path)
  assert transfer.peak_lr(1024, path) == pytest.approx(law.peak_lr(1024), rel=0.05)
