"""Win rates by judges whose verdicts are known."""

import shlex
import sys

import pytest

from lmjax.core.errors import UserError
from lmjax.train.judge import win_items

PROMPTS, BEFORE, AFTER = list('abcdefgh'), ['bad'] * 8, ['good'] * 8


def prefer_good(rows):
  return ['first' if row['first'] == 'good' else 'second' for row in rows]


def prefer_first(rows):
  return ['first'] * len(rows)


def shrug(rows):
  return ['no idea'] * len(rows)


def say_little(rows):
  return ['tie']


def command(source):
  return f'{shlex.quote(sys.executable)} -c {shlex.quote(source)}'


BETTER = (
  'import json, sys\n'
  'for line in sys.stdin:\n'
  ' row = json.loads(line)\n'
  ' print("first" if row["first"] == "good" else "second")'
)


@pytest.mark.parametrize('judge', ['test_judge:prefer_good', command(BETTER)])
def test_the_better_answer_wins_whichever_place_it_has(judge):
  assert win_items(judge, PROMPTS, BEFORE, AFTER, 0).mean == 1.0
  assert win_items(judge, PROMPTS, AFTER, BEFORE, 0).mean == 0.0


def test_a_judge_that_prefers_a_place_wins_nothing():
  prompts = list('ab') * 200
  found = win_items('test_judge:prefer_first', prompts, ['x'] * 400, ['y'] * 400, 0)
  assert abs(found.mean - 0.5) < 0.1


@pytest.mark.parametrize(
  ('judge', 'told'),
  [
    ('test_judge:shrug', "said 'no idea': each row needs one of first, second, tie"),
    ('test_judge:say_little', 'gave 1 verdicts on 8 rows'),
    ('test_judge:nobody', "has no function 'nobody'"),
    ('/no/such/program', 'cannot be run'),
    (command('raise SystemExit("tired")'), 'ended with 1: tired'),
  ],
)
def test_a_judge_that_fails_is_told(judge, told):
  with pytest.raises(UserError, match=told):
    win_items(judge, PROMPTS, BEFORE, AFTER, 0)
