"""Generated tokens as text, while they come: whole characters, up to the first stop string."""

import codecs
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmjax.data.tokenizer import Tokenizer


class Drawn(NamedTuple):
  """A drawn token, its log-probability in nats under the model, and the likeliest ones' if asked for.

  Log-probabilities are those of the logits as the model gives them, before temperature, filters,
  penalties and constraints.
  """

  token: int
  logprob: float
  alternatives: list[tuple[int, float]]


class Piece(NamedTuple):
  """The next of a text, and the tokens that it took; `text` may be empty only of the last."""

  text: str
  drawn: list[Drawn]


class Usage(NamedTuple):
  """Tokens of the prompt, those of it that had been read before, and tokens added."""

  prompt: int
  reused: int
  added: int


class Ended(NamedTuple):
  """Nothing more comes.

  reason: 'stop' (an end token or stop string, or the constraint is fulfilled), 'length',
    'cancelled', 'deadline', 'constraint' (it cannot be kept any more) or 'error'.
  """

  reason: str
  usage: Usage


class TextListener:
  """Makes pieces of text of one request's tokens and hands them to `sink`, then an `Ended`.

  It is called by the engine's thread; `sink` must be quick.
  """

  def __init__(
    self, tokenizer: Tokenizer, sink: Callable[[Piece | Ended], None], stops: Sequence[str] = ()
  ) -> None:
    self._tokenizer, self._sink, self._stops = tokenizer, sink, [stop for stop in stops if stop]
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._held, self._drawn = '', []

  def token(self, drawn: Drawn) -> bool:
    """Takes in the next token; True where a stop string ends the text."""
    self._drawn.append(drawn)
    self._held += self._decoder.decode(self._tokenizer.spell(drawn.token))
    found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
    if found:
      self._held = self._held[: min(found)]
      return True
    self._send(len(self._held) - self._beginning())
    return False

  def end(self, reason: str, usage: Usage) -> None:
    """Hands over what was held back."""
    self._held += self._decoder.decode(b'', final=True) if reason == 'length' else ''
    self._send(len(self._held), last=True)
    self._sink(Ended(reason, usage))

  def _beginning(self) -> int:
    """Characters at the end of the text that may become a stop string."""
    longest = max((len(stop) - 1 for stop in self._stops), default=0)
    for size in range(min(longest, len(self._held)), 0, -1):
      if any(stop.startswith(self._held[-size:]) for stop in self._stops):
        return size
    return 0

  def _send(self, size: int, last: bool = False) -> None:
    if size or (last and self._drawn):
      self._sink(Piece(self._held[:size], self._drawn))
      self._held, self._drawn = self._held[size:], []
