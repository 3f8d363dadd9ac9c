"""What a model answers to prompts: its chat template's next turn, or without one a continuation."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.core import assets
from lmjax.core.errors import UserError
from lmjax.core.storage import at
from lmjax.data import chat
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import Loaded
from lmjax.train.score import read_rows

_ROWS = 8  # answers at a time


def read_prompts(path: str) -> list[str]:
  """The texts of a JSONL file; without one the first half of each text of the asset."""
  if path:
    return [row['text'] for row in read_rows(at(path))]
  lines = assets.fetch('toxicity-prompts').read_text(encoding='utf-8').split('\n')
  texts = [json.loads(line)['text'].split() for line in lines if line.strip()]
  return [' '.join(words[: len(words) // 2]) for words in texts if len(words) > 3]


def answer_all(
  loaded: Loaded, prompts: Sequence[str], *, sampler: Sampler, max_tokens: int, seed: int
) -> list[str]:
  """One answer to each prompt, in their order; the draw of a prompt depends on its place and `seed`.

  Raises:
    UserError: a prompt and its answer are longer than the model reads.
  """
  tokens = [_encode(loaded, prompt) for prompt in prompts]
  longest = max(map(len, tokens), default=0)
  if loaded.length is not None and longest + max_tokens > loaded.length:
    raise UserError(
      f'a prompt of {longest} tokens and an answer of {max_tokens} are more than the {loaded.length} '
      'that the model reads: pass a smaller --max_tokens or shorter --prompts'
    )
  model, params = prepare(loaded.model, loaded.params)
  answers = [''] * len(prompts)
  order = sorted(range(len(prompts)), key=lambda index: -len(tokens[index]))
  for first in range(0, len(order), _ROWS):
    mine = order[first : first + _ROWS]
    how: Any = {'sampler': sampler, 'max_tokens': max_tokens, 'vocab': loaded.tokenizer.vocab}
    rows = [tokens[index] for index in mine]
    found = generate(model, params, rows, **how, end=loaded.ends[0], seed=seed + first)
    for index, ids in zip(mine, found, strict=True):
      stops = np.flatnonzero(np.isin(ids, loaded.ends))
      answers[index] = loaded.tokenizer.text(ids[: stops[0]] if len(stops) else ids)
  return answers


def _encode(loaded: Loaded, prompt: str) -> np.ndarray:
  if loaded.chat_template is not None:
    turn = [{'role': 'user', 'content': prompt}]
    return chat.encode(loaded.chat_template, turn, loaded.tokenizer, answer=True)
  start = np.array([loaded.tokenizer.start], np.int32)
  return np.concatenate([start, loaded.tokenizer.encode(prompt)])
