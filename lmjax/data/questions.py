"""Multiple-choice questions of the assets: rows of one shape, and the committed choice of them.

Rows are numbered by their line in the asset. `questions.json` names 1,000 of each set (all of a smaller
one) in an order drawn once, so that the first n of them are a fair sample; tools/choose_questions.py
wrote it.
"""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

from lmjax.core import assets
from lmjax.core.errors import UserError, nearest

CHOSEN = Path(__file__).with_name('questions.json')
SETS = ('boolq', 'openbookqa', 'siqa', 'commonsenseqa')

_OPTION = re.compile(r'(?:^|\n)([A-Z])\. ')


class Question(NamedTuple):
  """A question, what may be answered, and which of the choices is right.

  Attributes:
    id: the line of the asset, from 0.
    passage: what the question is about, or ''.
    gold: index of the right one of `choices`.
  """

  id: int
  passage: str
  question: str
  choices: list[str]
  gold: int


def read_questions(name: str) -> list[Question]:
  """All questions of a set.

  Raises:
    UserError: there is no such set, or its asset cannot be had.
  """
  if name not in SETS:
    raise UserError(f'unknown question set {name!r}: {nearest(name, SETS)}')
  lines = assets.fetch(name).read_text(encoding='utf-8').split('\n')
  return [_question(number, json.loads(line)) for number, line in enumerate(lines) if line.strip()]


def chosen_questions(name: str) -> list[Question]:
  """The committed ones, in their order."""
  questions = {question.id: question for question in read_questions(name)}
  return [questions[number] for number in _chosen()[name]]


@functools.cache
def _chosen() -> dict[str, list[int]]:
  return json.loads(CHOSEN.read_text(encoding='utf-8'))


def _question(number: int, row: dict) -> Question:
  passage, question = row.get('passage', '').strip(), row['question'].strip()
  if 'options' not in row:  # BoolQ
    return Question(number, passage, question, ['no', 'yes'], int(row['answer'] == 'True'))
  letters_and_texts = _OPTION.split(row['options'])[1:]
  letters, texts = letters_and_texts[::2], letters_and_texts[1::2]
  choices = [text.strip() for text in texts]
  return Question(number, passage, question, choices, letters.index(row['answer'].strip()[0]))
