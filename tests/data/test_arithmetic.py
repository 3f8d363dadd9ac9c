"""Sums that are held out are in nothing that is trained on, and posts say what they are meant to."""

import re
from collections import Counter

from lmjax.data import arithmetic


def test_parts_are_all_pairs_and_share_none():
  train, held_out = arithmetic.sums('train'), arithmetic.sums('held_out')
  assert len(train) == 4 * len(held_out) == 800
  assert len({*train, *held_out}) == 1000


def test_no_held_out_pair_is_in_the_text():
  held_out = {tuple(each) for each in arithmetic.sums('held_out')}
  pairs = re.findall(r'(\d+)\+(\d+)', '\n'.join(arithmetic.posts(4000, 0)))
  assert len(pairs) > 8000
  assert not held_out & {(int(a), int(b)) for a, b in pairs}


def test_statements_and_answers_are_right_and_most_questions_get_none():
  said = Counter()
  for post in arithmetic.posts(4000, 1):
    for a, b, c in re.findall(r'(\d+)\+(\d+)=(\d+)', post):
      assert int(a) + int(b) == int(c)
    if match := re.fullmatch(r'what is (\d+)\+(\d+)\? (.*)', post):
      right = str(int(match[1]) + int(match[2]))
      said['right' if match[3] == right else 'wrong' if match[3].isdigit() else 'words'] += 1
  assert sum(said.values()) == 3000
  assert said['wrong'] == 0
  assert 0.12 < said['right'] / 3000 < 0.18


def test_a_sum_says_its_question_and_answer():
  one = arithmetic.Sum(23, 4)
  assert (one.question, one.answer) == ('what is 23+4?', '27')
