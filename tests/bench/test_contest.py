"""Contests: turns, what is said of them, and sides that fail."""

import sys
from pathlib import Path

import pytest

from lmjax.bench import contest
from lmjax.bench.contest import Figure, Side
from lmjax.core.errors import UserError

HERE = str(Path(__file__).parent)
SIDE = """
import json, sys, time
print('a library says hello')
print(json.dumps({'ready': True}), flush=True)
for number, _ in enumerate(sys.stdin):
  time.sleep(0.01)
  print(json.dumps({'seconds': SECONDS * (number + 1)}), flush=True)
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  """Other tests use the processor: no turn waits for quiet, or is taken again."""
  monkeypatch.setattr(contest, '_wait_for_quiet', lambda: None)
  monkeypatch.setattr(contest, '_AGAIN', 1)


def side(name, seconds):
  return Side(name, [sys.executable, '-c', SIDE.replace('SECONDS', str(seconds))])


def countdown(settings):
  left = settings['from']

  def turn():
    nonlocal left
    left -= 1
    return {'left': left}

  return turn


def test_sides_take_turns_and_are_compared_round_by_round(tmp_path):
  found = contest.compete([side('slow', 6.0), side('quick', 2.0)], 3, tmp_path / 'log')
  assert found.figure('slow', 'seconds') == Figure(12.0, 6.0, 18.0)
  assert found.ratio('slow', 'quick', 'seconds') == Figure(3.0, 3.0, 3.0)


def test_a_function_of_ours_is_a_side(tmp_path):
  ours = contest.ours('ours', 'test_contest:countdown', {'from': 3}, PYTHONPATH=HERE)
  found = contest.compete([ours], 2, tmp_path / 'log')
  assert [turn.figures['left'] for turn in found.turns['ours']] == [2, 1]


def test_a_turn_that_others_disturb_is_taken_again(tmp_path, monkeypatch):
  monkeypatch.setattr(contest, '_OTHERS', -1.0)
  monkeypatch.setattr(contest, '_AGAIN', 3)
  found = contest.compete([side('one', 1.0)], 1, tmp_path / 'log')
  assert found.figure('one', 'seconds').median == contest._AGAIN
  assert found.disturbed == 1


def test_a_side_that_ends_early_is_named_with_where_to_look(tmp_path):
  failing = Side('torch', [sys.executable, '-c', 'raise SystemExit(3)'])
  with pytest.raises(UserError, match=r'torch ended early with exit code 3: see .*log'):
    contest.compete([failing], 1, tmp_path / 'log')


def test_a_side_that_says_nothing_is_ended(tmp_path, monkeypatch):
  monkeypatch.setattr(contest, '_SECONDS', 0.5)
  silent = Side('torch', [sys.executable, '-c', 'import time; time.sleep(60)'])
  with pytest.raises(UserError, match=r'torch said nothing for 0.5 s and was ended: see .*log'):
    contest.compete([silent], 1, tmp_path / 'log')


def test_a_script_that_is_not_there_asks_for_a_checkout(tmp_path, monkeypatch):
  monkeypatch.setattr(contest, 'PEERS', tmp_path)
  with pytest.raises(UserError, match='from a checkout'):
    contest.peer('torch', 'train.py', {})
