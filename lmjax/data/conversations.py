"""Conversations from files, in the shapes that people have them in, and as rows to train on.

    {"messages": [{"role", "content", ...}], "tools": [...]}      OpenAI
    {"conversations": [{"from", "value"}], "system", "tools"}     ShareGPT
    {"instruction", "input", "output", "system", "history"}       Alpaca
    {"question", "passage", "options", "answer"}                  questions and answers

Each row becomes a conversation or is counted under the reason why not. Knows no model.
"""

import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.core import assets
from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError, need
from lmjax.core.types import Batch
from lmjax.data import chat, files, formats, packing
from lmjax.data.chat import Encoded
from lmjax.data.shuffle import permutation
from lmjax.data.tokenizer import Tokenizer

# Who speaks, in ShareGPT's words.
_ROLES = {
  'human': 'user',
  'gpt': 'assistant',
  'observation': 'tool',
  'function_response': 'tool',
  'function_call': 'assistant',
  'bot': 'assistant',
  'model': 'assistant',
}
_KNOWN_ROLES = ('system', 'developer', 'user', 'assistant', 'tool')


class Conversations(Config):
  """Base of what rows of conversations, or of pairs of answers, come from."""

  most_rows: int | None = leaf(None, 'The first of the rows that are used; none: all.', low=2)
  held_out: float = leaf(0.1, 'Share of the rows that are held out.', above=0.0, high=0.5)

  def rows(self) -> list[formats.Row]:
    """Every row, broken ones too."""
    return list(itertools.islice(self._every(), self.most_rows))

  def _every(self) -> Iterator[formats.Row]:
    raise NotImplementedError


class Chats(Conversations):
  """Where conversations are, and how many of them are held out."""

  chats: str = leaf(
    '', 'An asset, or a file or glob with rows of messages, ShareGPT, Alpaca or questions.'
  )

  def _every(self) -> Iterator[formats.Row]:
    need('chats', self.chats, 'FILE.jsonl, conversations')
    known = assets.of_kind('chats')
    paths = [str(assets.fetch(self.chats))] if self.chats in known else files.matches(self.chats)
    if not paths:
      raise UserError(
        f'--chats={self.chats}: there is no such file: pass a file, a glob or one of the assets '
        f'{", ".join(known)}'
      )
    for path in paths:
      yield from formats.read_rows(path, formats.look(path))


class Conversation(NamedTuple):
  """Messages in OpenAI's shape, and the tools that were offered, or None."""

  messages: list[dict[str, Any]]
  tools: list[Any] | None


class Refused(Exception):
  """Why a row cannot be used, in words under which such rows are counted."""


class Sorted(NamedTuple):
  """What became of rows: in = train + held out + dropped.

  Attributes:
    train, held_out: what was made of the rows that are used.
    dropped: reason -> rows.
  """

  train: list[Any]
  held_out: list[Any]
  dropped: dict[str, int]

  @property
  def counts(self) -> dict[str, Any]:
    """As a report has them."""
    used, held_out = len(self.train), len(self.held_out)
    total = used + held_out + sum(self.dropped.values())
    return {'in': total, 'used': used, 'held_out': held_out, 'dropped': self.dropped}


def sort_rows(rows: Iterable[formats.Row], make: Callable[[Any], Any], share: float) -> Sorted:
  """`make` of the values of every row; those for which it raises `Refused` are counted.

  Which are held out depends on the number of usable rows alone.
  """
  made, dropped = [], collections.Counter()
  for row in rows:
    if row.problem:
      dropped[row.problem] += 1
      continue
    try:
      made.append(make(row.values))
    except Refused as reason:
      dropped[str(reason)] += 1
  if len(made) < 2:
    reasons = ', '.join(f'{count:,} {reason}' for reason, count in dropped.items()) or 'no rows'
    raise UserError(f'{len(made)} of the rows can be used, 2 are needed: {reasons}: pass others')
  count = min(len(made) - 1, max(1, round(share * len(made))))
  order = permutation(len(made), 'held out', 0)
  chosen = {int(order[place]) for place in range(count)}
  held_out = [one for number, one in enumerate(made) if number in chosen]
  train = [one for number, one in enumerate(made) if number not in chosen]
  return Sorted(train, held_out, dict(dropped))


def conversation(values: Mapping[str, Any]) -> Conversation:
  """The conversation of a row; `Refused` where it has none, or none in which anybody answers."""
  tools = _parsed(values.get('tools'))
  if isinstance(values.get('messages'), list):
    messages = [message_of(one) for one in values['messages']]
  elif isinstance(values.get('conversations'), list):
    messages = [*_system(values), *(shared_message(one) for one in values['conversations'])]
  elif 'instruction' in values:
    messages = _alpaca(values)
  elif 'question' in values:
    messages = [{'role': 'user', 'content': question(values)}]
    messages += [{'role': 'assistant', 'content': answer(values)}]
  else:
    raise Refused('of an unknown shape')
  if not any(message['role'] == 'assistant' for message in messages):
    raise Refused('without an answer')
  return Conversation(messages, tools if isinstance(tools, list) and tools else None)


def question(values: Mapping[str, Any]) -> str:
  """What is asked: the passage, the question and the options, a line each."""
  parts = (values.get('passage'), values.get('question'), values.get('options'))
  return '\n'.join(str(part).strip() for part in parts if part)


def answer(values: Mapping[str, Any]) -> str:
  """The answer to a question, the first of several."""
  found = values.get('answer')
  found = found[0] if isinstance(found, list) and found else found
  if not isinstance(found, str) or not found.strip():
    raise Refused('without an answer')
  return found.strip()


def encode_chat(
  values: Mapping[str, Any], template: str, tokenizer: Tokenizer, length: int
) -> Encoded:
  """A row's conversation for a row of `length` positions: turns that do not fit are left out whole."""
  found = conversation(values)
  try:
    encoded = chat.encode_turns(template, found.messages, tokenizer, tools=found.tools)
  except UserError as error:
    raise Refused('refused by the chat template') from error
  fitting = [end for end in encoded.ends if end <= length + 1]
  if not fitting:
    raise Refused('longer than a row')
  end = fitting[-1]
  return Encoded(encoded.tokens[:end], encoded.weights[:end], tuple(fitting))


def pack(texts: Sequence[Encoded], length: int) -> list[list[int]]:
  """Which texts share a row: each whole, in the fullest row with room."""
  # `plan` counts one prediction more than tokens; here the first token is given.
  pieces = packing.plan(np.array([len(text.tokens) - 2 for text in texts]), length, 'best_fit')
  rows: list[list[int]] = [[] for _ in range(int(pieces.row[-1]) + 1)]
  for row, text in zip(pieces.row.tolist(), pieces.post.tolist(), strict=True):
    rows[row].append(text)
  return rows


def lay(rows: Sequence[Sequence[Encoded]], length: int) -> Batch:
  """The arrays of rows, each of some texts one after another, which do not see each other."""
  shape = (len(rows), length)
  tokens, targets, segments, positions = np.zeros((4, *shape), np.int32)
  weights = np.zeros(shape, np.float32)
  for row, texts in enumerate(rows):
    start = 0
    for number, text in enumerate(texts, 1):
      place = (row, slice(start, start + len(text.tokens) - 1))
      tokens[place], targets[place] = text.tokens[:-1], text.tokens[1:]
      weights[place], segments[place] = text.weights[1:], number
      positions[place] = np.arange(len(text.tokens) - 1)
      start += len(text.tokens) - 1
  arrays: Any = (tokens, targets, weights, segments, positions)
  return Batch(*arrays)


def message_of(message: Any) -> dict[str, Any]:
  """One of OpenAI's messages, whose content may be a list of parts."""
  if not isinstance(message, Mapping) or message.get('role') not in _KNOWN_ROLES:
    raise Refused('with a message of no known role')
  content = message.get('content')
  if isinstance(content, list):
    content = ''.join(str(part.get('text', '')) for part in content if isinstance(part, Mapping))
  return {**message, 'content': content or ''}


def shared_message(message: Any) -> dict[str, Any]:
  """One of ShareGPT's messages."""
  said = message if isinstance(message, Mapping) else {}
  role = _ROLES.get(str(said.get('from')), said.get('from'))
  return message_of({'role': role, 'content': said.get('value')})


def _system(values: Mapping[str, Any]) -> list[dict[str, Any]]:
  said = values.get('system')
  return [{'role': 'system', 'content': said}] if isinstance(said, str) and said else []


def _alpaca(values: Mapping[str, Any]) -> list[dict[str, Any]]:
  said = values.get('output', values.get('response'))
  if not isinstance(said, str) or not said.strip():
    raise Refused('without an answer')
  asked = [str(part) for part in (values['instruction'], values.get('input')) if part]
  turns = [turn for pair in values.get('history') or [] for turn in pair]
  turns += ['\n'.join(asked), said]
  speakers = ('user', 'assistant')
  messages = [{'role': speakers[i % 2], 'content': turn} for i, turn in enumerate(turns)]
  return [*_system(values), *messages]


def _parsed(value: Any) -> Any:
  """ShareGPT keeps tools as JSON text."""
  try:
    return json.loads(value) if isinstance(value, str) and value.strip() else value
  except ValueError:
    return None
