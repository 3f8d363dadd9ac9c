"""The task that talks with a model in the terminal."""

import queue
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report
from lmjax.generate.continuous import Batching
from lmjax.generate.scheduler import Request
from lmjax.generate.settings import Settings
from lmjax.generate.text import Ended, Piece, TextListener
from lmjax.serve.limits import Limits
from lmjax.serve.task import Serving

_HELP = '/new begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer'


class Chat(Serving):
  """Talks with a model in the terminal, answers streaming."""

  batching: Batching = part(Batching(rows=1, queue=1), 'Room for the conversation.')
  system: str = leaf('', 'What the model is told before all; empty: what its template has.')
  prompt: str = leaf('', 'One question, answered before the end; empty: a conversation.')
  max_tokens: int = leaf(512, 'Tokens of an answer at most.', low=1)
  seed: int | None = leaf(
    None, 'The same seed gives the same answers; none: others.', low=0, high=2**32 - 1
  )

  def run(self, workdir: Path) -> Report:
    """Prints answers; the report says how many and how fast."""
    service = self.make_service(Limits(answer_tokens=self.max_tokens))
    for done, of in service.warm():
      print(f'\rcompiling {done} of {of}', end='\n' if done == of else '', flush=True)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      told = [self._answer(service, turns) for turns in self._conversations()]
    finally:
      signal.signal(signal.SIGINT, old)
      service.close(0.0)
    tokens, seconds = sum(t for t, _ in told), sum(s for _, s in told)
    rate = tokens / seconds if seconds else 0.0
    print(f'{len(told)} answers, {tokens} tokens, {rate:.1f} tokens/s', flush=True)
    return {'answers': len(told), 'tokens': tokens, 'tokens_per_second': rate}

  def _conversations(self):
    """The messages before each answer, which `_answer` adds to them."""
    begin = [{'role': 'system', 'content': self.system}] if self.system else []
    messages: list[dict[str, str]] = list(begin)
    if self.prompt:
      yield [*messages, {'role': 'user', 'content': self.prompt}]
      return
    print(_HELP, flush=True)
    while True:
      try:
        said = input('> ').strip()
      except (EOFError, KeyboardInterrupt):
        print()
        return
      if said == '/exit':
        return
      if said == '/new':
        messages = list(begin)
      elif said.startswith('/'):
        print(_HELP)
      elif said:
        messages.append({'role': 'user', 'content': said})
        yield messages

  def _answer(self, service: Any, messages: list[dict[str, str]]) -> tuple[int, float]:
    """Tokens of an answer and their seconds; a question that does not fit is taken back."""
    told: queue.SimpleQueue[Piece | Ended] = queue.SimpleQueue()
    try:
      prompt = self._encode(service, messages)
      room = min(self.max_tokens, service.engine.slots - len(prompt))
      if room < 1:
        raise UserError(
          f'the conversation has {len(prompt)} tokens, and {service.engine.slots} fit: begin anew with /new'
        )
    except UserError as error:
      messages.pop()
      print(error, file=sys.stderr)
      return 0, 0.0
    seed = secrets.randbits(32) if self.seed is None else self.seed
    request = Request(
      prompt,
      room,
      Settings(sampler=self.sampler, seed=seed),
      TextListener(service.tokenizer, told.put),
      ends=service.ends,
    )
    begun, text = time.monotonic(), ''
    service.engine.submit(request)
    while True:
      try:
        event = told.get()
      except KeyboardInterrupt:
        service.engine.cancel(request)
        continue
      if isinstance(event, Ended):
        break
      text += event.text
      print(event.text, end='', flush=True)
    print(flush=True)
    if event.reason == 'error':
      print('the answer ends here by a mistake, which the log tells of', file=sys.stderr)
    messages.append({'role': 'assistant', 'content': text})
    return event.usage.added, time.monotonic() - begun

  def _encode(self, service: Any, messages: list[dict[str, str]]) -> list[int]:
    if service.template is not None:
      return service.encode_chat(messages)
    return service.encode_text('\n'.join(message['content'] for message in messages))
