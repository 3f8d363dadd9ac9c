"""Messages as a model was taught to read them: its chat template, and token ids with which nobody forges a turn.

A template is a published model's own Jinja source, so it runs in jinja2's sandbox (extra [hf]).
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""OpenAI's shape: `role`, `content` and what else the template reads."""

# Around each content while a template runs: private-use characters, which no template looks for.
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
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
  except ImportError:
    raise UserError("chat templates need jinja2: pip install 'lmjax[hf]'") from None

  def refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
  )
  environment.filters['tojson'] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
  environment.globals['raise_exception'] = refuse
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  try:
    return environment.from_string(template).render(
      messages=[dict(message) for message in messages],
      bos_token=start,
      eos_token=end,
      add_generation_prompt=answer,
      tools=None if tools is None else list(tools),
    )
  except TemplateError as error:
    raise UserError(f'the chat template refuses these messages: {error}: change them') from None


def encode(
  template: str,
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  *,
  answer: bool = False,
  tools: Sequence[Mapping[str, Any]] | None = None,
) -> np.ndarray:
  """Token ids i32 of `render`'s text: control tokens of the template are, those in a content stay text.

  Raises:
    UserError: also where the template rewrites contents, so that they cannot be told from itself.
  """
  how: dict[str, Any] = {
    'start': tokenizer.name(tokenizer.start),
    'end': tokenizer.name(tokenizer.end),
    'answer': answer,
    'tools': tools,
  }
  text = render(template, messages, **how)
  contents = [str(message.get('content') or '') for message in messages]
  marks = [f'{_OPEN}{number}{_CLOSE}' if content else '' for number, content in enumerate(contents)]
  marked = render(template, [{**m, 'content': c} for m, c in zip(messages, marks)], **how)
  # Many templates strip contents.
  for candidate in (contents, [content.strip() for content in contents]):
    parts = _MARKED.split(marked)
    parts[1::2] = [candidate[int(number)] for number in parts[1::2]]
    if ''.join(parts) == text:
      return _encode(parts, tokenizer)
  raise UserError(
    'the chat template rewrites the contents of messages, so what users typed cannot be told from it: '
    'use another template'
  )


def _encode(parts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
  """Ids of template and content in turn; text between control tokens is encoded in one piece."""
  control = re.compile('|'.join(map(re.escape, sorted(tokenizer.controls, key=len, reverse=True))))
  ids: list[np.ndarray] = []
  text = ''
  for place, part in enumerate(parts):
    if place % 2:
      text += part
      continue
    start = 0
    for match in control.finditer(part):
      text += part[start : match.start()]
      ids += [tokenizer.encode(text), np.array([tokenizer.controls[match.group()]], np.int32)]
      text, start = '', match.end()
    text += part[start:]
  return np.concatenate([*ids, tokenizer.encode(text)])
