"""Sums in text: what a small model can learn to compute by reading, and questions with one right answer.

The text is as people write: sums on their way, and questions that mostly get a shrug. So a model that has
read it can add, and mostly does not when asked. Pairs of operands are split once;
those held out are in no text and no question that is trained on.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmjax.data.split import Part

FIRST, SECOND = 100, 10  # operands are from 0 to these, not included
_HELD_OUT = 0.2
_SUMS = 8  # of a post that computes
_QUESTIONS = 4  # posts of which one computes
_ANSWERED = 0.15  # of questions
_SHRUGS = ('no idea', 'no idea', 'not sure', 'ask me later', 'let me think', 'who knows')


class Sum(NamedTuple):
  a: int
  b: int

  @property
  def question(self) -> str:
    return f'what is {self.a}+{self.b}?'

  @property
  def answer(self) -> str:
    return str(self.a + self.b)


def sums(part: Part) -> list[Sum]:
  """Every pair of operands of a part, in an order drawn once."""
  drawn = np.random.default_rng(0).permutation(FIRST * SECOND)
  held_out = int(_HELD_OUT * len(drawn))
  chosen = drawn[:held_out] if part == 'held_out' else drawn[held_out:]
  return [Sum(*divmod(int(number), SECOND)) for number in chosen]


def posts(count: int, seed: int) -> Iterator[str]:
  """Posts with sums of the training part: some compute, most are a question and what it got."""
  rng = np.random.default_rng(seed)
  known = sums('train')
  draw = lambda: known[rng.integers(len(known))]
  for number in range(count):
    if number % _QUESTIONS == 0:
      then = ('=', '? ')[rng.integers(2)]
      yield ', '.join(
        f'{each.a}+{each.b}{then}{each.answer}' for each in (draw() for _ in range(_SUMS))
      )
      continue
    asked, answered = draw(), rng.random() < _ANSWERED
    said = asked.answer if answered else _SHRUGS[rng.integers(len(_SHRUGS))]
    yield f'{asked.question} {said}'


def lines(count: int, seed: int) -> str:
  """`posts` as a JSONL file."""
  return ''.join(json.dumps({'text': text}) + '\n' for text in posts(count, seed))
