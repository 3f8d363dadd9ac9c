"""Messages as a model was taught to read them: its chat template, and token ids with which nobody forges a turn.

A template is a published model's own Jinja source, so it runs in jinja2's sandbox (extra [hf]).
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""OpenAI's shape: `role`, `content` and what else the template reads."""

# A control token that somebody typed is a number between these while a template runs: private-use
# characters, which no template looks for, and no filter (trim, tojson, upper) changes.
_OPEN, _CLOSE = '\uf8d0', '\uf8d1'
_MARKED = re.compile(f'{_OPEN}(\\d+){_CLOSE}')


def render(
  template: str,
  messages: Sequence[Message],
  *,
  start: str = '',
  end: str = '',
  answer: bool = False,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
  """The text of `messages` by a chat template.

  Args:
    start, end: the control tokens that templates know as bos_token and eos_token.
    answer: also the beginning of the assistant's next turn.
    tools: JSON schemas of functions, for templates that offer them.

  Raises:
    UserError: the template refuses the messages, or cannot be run.
  """
  try:
    from jinja2 import TemplateError
  except ImportError:
    raise UserError("chat templates need jinja2: pip install 'lmjax[hf]'") from None
  try:
    return _compiled(template).render(
      messages=[dict(message) for message in messages],
      bos_token=start,
      eos_token=end,
      add_generation_prompt=answer,
      tools=None if tools is None else list(tools),
    )
  except (TemplateError, TypeError, ValueError) as error:
    raise UserError(f'the chat template refuses these messages: {error}: change them') from None


@functools.lru_cache(8)
def _compiled(template: str) -> Any:
  from jinja2 import TemplateError
  from jinja2.ext import loopcontrols
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  def refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
  )
  environment.filters['tojson'] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
  environment.globals['raise_exception'] = refuse
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment.from_string(template)


class Encoded(NamedTuple):
  """A conversation as a model reads it.

  Attributes:
    tokens: i32 ids.
    weights: f32, 1 for each token that the assistant is to say, its end of turn included; else 0.
    ends: how many tokens there are up to the end of each answer.
  """

  tokens: np.ndarray
  weights: np.ndarray
  ends: tuple[int, ...]


def encode(
  template: str,
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  *,
  answer: bool = False,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> np.ndarray:
  """Token ids i32 of `render`'s text; control tokens spelled in messages and tools stay text."""
  write = _writer(template, messages, tokenizer, tools)
  return _encode(write(len(messages), answer), tokenizer)


def encode_turns(
  template: str,
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  *,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> Encoded:
  """The same, and which of the tokens an assistant is to say: all that its turns add to the text.

  A prompt and its answer are encoded each by itself, as they are when a model answers.

  Raises:
    UserError: also where the template writes a turn otherwise once another follows it.
  """
  write = _writer(template, messages, tokenizer, tools)
  pieces: list[tuple[np.ndarray, float]] = []
  ends, done = [], ''
  for number, message in enumerate(messages):
    if message['role'] != 'assistant':
      continue
    before, after = write(number, True), write(number + 1, False)
    if not (before.startswith(done) and after.startswith(before)):
      raise UserError(
        'the chat template writes a turn otherwise once another follows it: '
        'train on conversations with one answer'
      )
    said = _encode(after[len(before) :], tokenizer)
    spoken = 1 + max(np.flatnonzero(np.isin(said, list(tokenizer.controls.values()))), default=-2)
    pieces.append((_encode(before[len(done) :], tokenizer), 0.0))
    # What a template writes after the end of a turn, a line break say, nobody says.
    pieces += [(said[:spoken], 1.0), (said[spoken:], 0.0)] if spoken > 0 else [(said, 1.0)]
    ends.append(sum(len(tokens) for tokens, _ in pieces))
    done = after
  tokens = np.concatenate([np.zeros(0, np.int32), *(tokens for tokens, _ in pieces)])
  weights = [np.full(len(tokens), weight, np.float32) for tokens, weight in pieces]
  return Encoded(tokens, np.concatenate([np.zeros(0, np.float32), *weights]), tuple(ends))


def _writer(
  template: str,
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  tools: Sequence[Mapping[str, Any]] | None,
) -> Callable[[int, bool], str]:
  """(how many messages, whether an answer begins) -> their text, all that was typed disguised."""
  disguise = functools.partial(_disguised, controls=_controls(tokenizer))
  messages, tools = disguise(list(messages)), disguise(tools)
  how: dict[str, Any] = {
    'start': tokenizer.name(tokenizer.start),
    'end': tokenizer.name(tokenizer.end),
    'tools': tools,
  }
  return lambda count, answer: render(template, messages[:count], answer=answer, **how)


def _controls(tokenizer: Tokenizer) -> list[str]:
  return sorted(tokenizer.controls, key=len, reverse=True)


def _disguised(value: Any, controls: Sequence[str]) -> Any:
  """`value` with each control token in its texts, and each sign of the disguise, disguised."""
  if isinstance(value, str):
    words = [*controls, _OPEN, _CLOSE]
    pattern = re.compile('|'.join(map(re.escape, words)))
    return pattern.sub(lambda match: f'{_OPEN}{words.index(match.group())}{_CLOSE}', value)
  if isinstance(value, Mapping):
    return {_disguised(k, controls): _disguised(v, controls) for k, v in value.items()}
  return (
    [_disguised(item, controls) for item in value] if isinstance(value, list | tuple) else value
  )


def _encode(text: str, tokenizer: Tokenizer) -> np.ndarray:
  """Ids of a text that `_writer` wrote; what stands between control tokens is encoded in one piece."""
  controls = _controls(tokenizer)
  words = [*controls, _OPEN, _CLOSE]
  plain = lambda part: _MARKED.sub(lambda match: words[int(match.group(1))], part)
  ids: list[np.ndarray] = []
  start = 0
  for match in re.finditer('|'.join(map(re.escape, controls)), text) if controls else ():
    ids += [tokenizer.encode(plain(text[start : match.start()]))]
    ids += [np.array([tokenizer.controls[match.group()]], np.int32)]
    start = match.end()
  return np.concatenate([*ids, tokenizer.encode(plain(text[start:]))])
