"""Pairs of answers of which one is preferred, from files in the shapes that people have them in.

    {"prompt", "chosen", "rejected"}                        texts or lists of messages
    {"conversations", "chosen", "rejected"}                 ShareGPT
    {"chosen": "\\n\\nHuman: ...", "rejected": ...}           Anthropic's
    {"question", "passage", "options", "answer"}            the answer, and an option that is wrong

A pair is one row: the preferred conversation is its first segment, the other its second.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.types import Batch
from lmjax.data import chat, conversations
from lmjax.data.chat import Encoded
from lmjax.data.conversations import Refused
from lmjax.data.tokenizer import Tokenizer

_TURN = re.compile(r'\n\n(Human|Assistant):')
_OPTION = re.compile(r'^\(?[A-Z][.)]\s*')


class Pair(NamedTuple):
  """Two conversations that differ in their last answer."""

  chosen: Encoded
  rejected: Encoded


@flax.struct.dataclass
class PairBatch:
  """Rows of one pair each.

  Attributes:
    rows: segment 1 is the preferred conversation, 2 the other; weights are 1 where the last answer is.
    reference_B2: f32 log p of the two answers under the model that training begins from, in nats.
  """

  rows: Batch
  reference_B2: jax.Array


def encode_pair(
  values: Mapping[str, Any], template: str, tokenizer: Tokenizer, length: int
) -> Pair:
  """The pair of a row; `Refused` where it has none, or none that fits into a row of `length`."""
  prompt, chosen, rejected = _messages(values)
  encoded = []
  for said in (chosen, rejected):
    try:
      whole = chat.encode_turns(template, [*prompt, *said], tokenizer)
    except UserError as error:
      raise Refused('refused by the chat template') from error
    before = whole.ends[-2] if len(whole.ends) > 1 else 0
    last = np.where(np.arange(len(whole.tokens)) < before, 0, whole.weights).astype(np.float32)
    encoded.append(Encoded(whole.tokens, last, whole.ends[-1:]))
  pair = Pair(*encoded)
  if len(pair.chosen.tokens) + len(pair.rejected.tokens) - 2 > length:
    raise Refused('longer than a row')
  if np.array_equal(pair.chosen.tokens, pair.rejected.tokens):
    raise Refused('with two equal answers')
  return pair


def lay_pairs(pairs: Sequence[Pair], length: int) -> Batch:
  """The arrays of rows of one pair each."""
  return conversations.lay(pairs, length)


def _messages(values: Mapping[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
  """(prompt, preferred, other), messages each."""
  if 'chosen' not in values or 'rejected' not in values:
    if 'question' in values and 'options' in values:
      return _question(values)
    raise Refused('of an unknown shape')
  said = [_answers(values[name]) for name in ('chosen', 'rejected')]
  prompt = values.get('prompt', values.get('conversations', []))
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}] if prompt else []
  prompt = [_as_message(message) for message in prompt]
  for answer in said:
    if not answer or answer[-1]['role'] != 'assistant' or not answer[-1]['content']:
      raise Refused('without an answer')
  return prompt, said[0], said[1]


def _answers(value: Any) -> list[dict[str, Any]]:
  if isinstance(value, str) and _TURN.match(value):
    parts = _TURN.split(value)[1:]
    roles = {'Human': 'user', 'Assistant': 'assistant'}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{'role': roles[who], 'content': text.strip()} for who, text in turns]
  if isinstance(value, str):
    return [{'role': 'assistant', 'content': value}]
  return [_as_message(message) for message in (value if isinstance(value, list) else [value])]


def _as_message(message: Any) -> dict[str, Any]:
  shared = isinstance(message, Mapping) and 'from' in message
  return conversations.shared_message(message) if shared else conversations.message_of(message)


def _question(values: Mapping[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
  """A question, its answer, and one of the other options, always the same."""
  right = _OPTION.sub('', conversations.answer(values))
  options = [_OPTION.sub('', line.strip()) for line in str(values['options']).strip().split('\n')]
  wrong = [option for option in options if option and option.lower() != right.lower()]
  if not wrong:
    raise Refused('without a wrong option')
  asked = conversations.question(values)
  other = wrong[zlib.crc32(asked.encode()) % len(wrong)]
  say = lambda role, content: [{'role': role, 'content': content}]
  return say('user', asked), say('assistant', right), say('assistant', other)
