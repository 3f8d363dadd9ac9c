"""Draws the questions that `chat_eval` asks: python tools/choose_questions.py lmjax/data/questions.json"""

import json
import sys
from pathlib import Path

import numpy as np

from lmjax.data.questions import SETS, read_questions

COUNT, SEED = 1000, 0


def main() -> None:
  chosen = {}
  for name in SETS:
    ids = np.array([question.id for question in read_questions(name)])
    drawn = np.random.default_rng(SEED).permutation(ids)[:COUNT]
    chosen[name] = drawn.tolist()
  text = ',\n'.join(f'"{name}": {json.dumps(ids)}' for name, ids in chosen.items())
  Path(sys.argv[1]).write_text(f'{{\n{text}\n}}\n', encoding='utf-8')


if __name__ == '__main__':
  main()
