"""The mixture at random access is what walking through it row by row gives."""

import json

import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.data.mixture import BLOCK, Mixture, Schedule, Source
from lmjax.data.shuffle import permutation
from lmjax.data.sources import Posts


def _mixture(*weights) -> Mixture:
  pairs = [weight if isinstance(weight, tuple) else ((0, weight),) for weight in weights]
  return Mixture([Source(Posts(posts=f'{number}.jsonl'), w) for number, w in enumerate(pairs)])


CHANGING = _mixture(3.0, ((0, 1.0), (700, 2.5)), ((0, 0.0), (300, 1.0), (2100, 0.0)))


def _walk(mixture: Mixture, batch: int, seed: int, rows: int) -> list[tuple[int, int]]:
  """(source, counter) of the first rows, one after another."""
  counters = [0] * len(mixture.sources)
  walked = []
  for number, phase in enumerate(mixture.phases):
    last = number == len(mixture.phases) - 1
    stop = rows if last else mixture.phases[number + 1].step * batch
    for at in range(phase.step * batch, stop):
      block, place = divmod(at - phase.step * batch, BLOCK)
      if place == 0:
        shuffled = permutation(BLOCK, 'mixture', seed, number, block)
        order = np.repeat(np.arange(len(counters)), phase.quotas)[shuffled].tolist()
      walked.append((order[place], counters[order[place]]))
      counters[order[place]] += 1
  return walked


def test_random_access_is_the_walk():
  batch, rows = 7, 30_000  # phases begin and end within blocks
  walked = _walk(CHANGING, batch, seed=5, rows=rows)
  schedule = Schedule(CHANGING.phases, batch, seed=5)
  at = np.random.default_rng(0).permutation(rows)[:5000].tolist()
  assert [schedule.locate(row) for row in at] == [walked[row] for row in at]
  assert schedule.locate(rows - 1) == walked[-1]


def test_each_source_counts_its_own_rows_without_gap_or_repeat():
  schedule = Schedule(CHANGING.phases, 7, seed=5)
  counters = [0, 0, 0]
  for row in range(20_000):
    source, counter = schedule.locate(row)
    assert counter == counters[source]
    counters[source] += 1


def test_a_far_row_costs_no_walk():
  schedule = Schedule(_mixture(1.0, 3.0).phases, 16, seed=0)
  source, counter = schedule.locate(10**15)
  share = (0.25, 0.75)[source]
  assert abs(counter - share * 10**15) <= BLOCK


def test_every_block_has_the_share_of_each_source():
  mixture = _mixture(5.0, 2.0, 0.003)
  schedule = Schedule(mixture.phases, 16, seed=1)
  assert mixture.phases[0].quotas.sum() == BLOCK
  for block in (0, 1, 17):
    sources = [schedule.locate(row)[0] for row in range(block * BLOCK, (block + 1) * BLOCK)]
    np.testing.assert_array_equal(np.bincount(sources), mixture.phases[0].quotas)
  np.testing.assert_allclose(
    mixture.phases[0].quotas / BLOCK, np.array([5, 2, 0.003]) / 7.003, atol=1 / BLOCK
  )


def test_shares_hold_at_every_scale():
  schedule = Schedule(_mixture(1.0, 1.0).phases, 16, seed=1)
  first = np.array([schedule.locate(row)[0] for row in range(BLOCK)])
  assert abs(first[: BLOCK // 8].mean() - 0.5) < 0.1


def test_weights_change_at_their_step():
  batch = 10
  schedule = Schedule(CHANGING.phases, batch, seed=3)
  sources = np.array([schedule.locate(row)[0] for row in range(4000 * batch)])
  for start, stop, weights in [
    (0, 300, [3, 1, 0]),
    (300, 700, [3, 1, 1]),
    (700, 2100, [3, 2.5, 1]),
    (2100, 4000, [3, 2.5, 0]),
  ]:
    seen = np.bincount(sources[start * batch : stop * batch], minlength=3)
    np.testing.assert_allclose(seen / seen.sum(), np.array(weights) / sum(weights), atol=0.03)
    assert all(count == 0 for count, weight in zip(seen, weights, strict=True) if weight == 0)


def test_the_seed_changes_the_order_and_not_the_shares():
  schedules = [Schedule(_mixture(1.0, 2.0).phases, 4, seed) for seed in (0, 1)]
  orders = [[schedule.locate(row)[0] for row in range(BLOCK)] for schedule in schedules]
  assert orders[0] != orders[1]
  assert sum(orders[0]) == sum(orders[1])


def _load(tmp_path, content) -> Mixture:
  path = tmp_path / 'mixture.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return Mixture.load(path)


def test_a_file_names_sources_and_weights(tmp_path):
  mixture = _load(
    tmp_path,
    [
      {'posts': 'healthtweets', 'weight': [[0, 1], [200, 0.5]]},
      {'posts': 'a/*.csv,b.csv', 'weight': 3, 'posts_format': 'csv', 'text_field': 'body'},
    ],
  )
  assert mixture.sources[0] == Source(Posts(), ((0, 1.0), (200, 0.5)))
  assert mixture.sources[1].posts == Posts(
    posts='a/*.csv,b.csv', posts_format='csv', text_field='body'
  )
  assert [phase.step for phase in mixture.phases] == [0, 200]


A = {'posts': 'healthtweets'}


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('[{', r'mixture\.json is no JSON: '),
    ('{}', 'expected a list of sources, each with "posts" and "weight"'),
    ('[]', 'expected a list of sources'),
    ([3], 'source 1 is 3: expected {"posts"'),
    ([{**A, 'weight': 1, 'wieght': 2}], "unknown key 'wieght': did you mean weight"),
    ([{**A, 'weight': 1}, {'weight': 1}], "source 2 has no 'posts': add one"),
    ([A], "source 1 has no 'weight': add one"),
    ([{**A, 'weight': -1}], r'source 1 has weight -1: expected a number of 0 or more'),
    ([{**A, 'weight': True}], 'expected a number of 0 or more'),
    ([{**A, 'weight': 'much'}], "weight 'much': expected a number of 0 or more"),
    ('[{"posts": "healthtweets", "weight": NaN}]', 'expected a number of 0 or more'),
    ([{**A, 'weight': [[0, 1], [5]]}], r'or a list of \[step, weight\]'),
    ([{**A, 'weight': [[0, 1], [9, 2], [9, 3]]}], r'at steps \[0, 9, 9\]: .* begin at 0 and rise'),
    ([{**A, 'weight': [[5, 1]]}], r'at steps \[5\]: .* begin at 0 and rise'),
    ([{**A, 'weight': [[0.5, 1]]}], r'at steps \[0\.5\]: expected whole numbers'),
    ([{**A, 'weight': []}], r'at steps \[\]: '),
    ([{**A, 'weight': 1, 'posts_format': 'doc'}], "posts_format='doc': expected one of: auto"),
    ([{**A, 'weight': 0}], 'no source has a weight from step 0 on: give one a weight above 0'),
    (
      [{**A, 'weight': 1}, {**A, 'weight': [[0, 1], [50, 1e-5]]}],
      r'1e-05 of healthtweets is too small .* from step 50 on .*: give it 0\.000244 or more, or 0',
    ),
  ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, content, message):
  with pytest.raises(UserError, match=message) as caught:
    _load(tmp_path, content)
  assert str(caught.value).startswith(f'mixture {tmp_path}')
  assert '\n' not in str(caught.value)


def test_a_missing_file_is_said(tmp_path):
  with pytest.raises(UserError, match=r'gone\.json cannot be read: No such file'):
    Mixture.load(tmp_path / 'gone.json')
