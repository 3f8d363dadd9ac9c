"""Who computes what in the next step: continuous batching over a fixed number of rows of a cache.

Plain Python, and the same for the same requests at the same steps: each step every sequence that is
past its prompt gets its next token, and what room is left goes to prompts, a chunk at a time (Orca,
Yu et al. 2022; Sarathi, Agrawal et al. 2023). Knows nothing about arrays or text.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmjax.core.errors import UserError
from lmjax.generate.cache import PAGE, Pages

_CHEAP = 8  # tokens of a step that take hardly longer than one, on CPUs too
_NGRAMS = (3, 2)  # tokens that must repeat before what followed them is guessed again


class Full(Exception):
  """The queue has no room: try again later."""


@dataclasses.dataclass(eq=False)
class Request:
  """What is asked for.

  Attributes:
    prompt: token ids, at least one.
    max_tokens: tokens to add at most.
    settings: how it is drawn; where these are not `plain`, a draw depends on the tokens before it
      and none can be guessed ahead.
    listener: is told of it; for whoever runs the steps, as the settings are.
    ends: tokens that end it.
    priority: lower ones are taken from the queue first.
    owner: within a priority, owners take turns.
    deadline: seconds of `time.monotonic` after which nobody waits any more, or None.
    name: what the log calls it.
  """

  prompt: Sequence[int]
  max_tokens: int
  settings: Any
  listener: Any
  ends: frozenset[int] = frozenset()
  priority: int = 0
  owner: str = ''
  deadline: float | None = None
  name: str = ''
  cancelled: bool = False


@dataclasses.dataclass(eq=False)
class Running:
  """A request that has a row. `tokens[:computed]` have their keys and values there.

  followed: where what followed some words begins, the last time that they stood in `tokens[:looked]`.
  """

  request: Request
  row: int
  tokens: list[int]
  computed: int
  reused: int  # tokens of the prompt that were there already
  order: int  # of admission
  followed: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
  looked: int = 0

  @property
  def added(self) -> int:
    return len(self.tokens) - len(self.request.prompt)


class Span(NamedTuple):
  """Tokens of one sequence in a step: from its `start`-th, of which the last `wanted` draw the next.

  drafts: guesses at what follows the sequence, the last of `tokens`.
  """

  running: Running
  start: int
  tokens: list[int]
  drafts: int
  wanted: int


class Copy(NamedTuple):
  """Row `source` is to be copied to row `target` before the step."""

  source: int
  target: int


class Step(NamedTuple):
  spans: list[Span]
  copies: list[Copy]
  ended: list[tuple[Request, Running | None, str]]  # and why: cancelled or deadline


class Scheduler:
  """The queue and the rows."""

  def __init__(
    self,
    *,
    rows: int,
    slots: int,
    budget: int,
    queue: int,
    patience: int | None = None,
    drafts: int = 0,
    wanted: int = 32,
  ) -> None:
    """Prepares `rows` rows of `slots` tokens.

    Args:
      budget: tokens of a step at most, more than `rows`.
      queue: requests that may wait for their first token, in a row or before they get one.
      patience: steps in which a row must be sure to be free for a request that comes; None: any.
      drafts: tokens guessed ahead of a sequence at most, by looking up what followed the same words
        earlier in it.
      wanted: draws of a step at most, no fewer than `rows`.
    """
    if budget <= rows or wanted < rows:
      raise UserError(
        f'{rows} sequences at a time leave no room for prompts in steps of {budget} tokens and '
        f'{wanted} draws: pass fewer'
      )
    self._slots, self._budget, self._bound, self._patience = slots, budget, queue, patience
    self._drafts, self._wanted = drafts, wanted
    self._pages = Pages(rows)
    self._rows: list[Running | None] = [None] * rows
    self._freed = list(range(rows))  # free rows, the longest free first
    self._queue: list[tuple[int, int, int, Request]] = []
    self._turn = 0  # that the queue has come to
    self._turns: dict[str, int] = {}  # the next of each owner, where it is a later one
    self._arrivals, self._admissions = itertools.count(), itertools.count()

  @property
  def waiting(self) -> int:
    return len(self._queue)

  @property
  def room(self) -> int:
    """How many more requests may come: the queue is bounded, and so is how long its last may wait."""
    unanswered = sum(not running.added for running in self.running)
    room = self._bound - self.waiting - unanswered
    if self._patience is None:
      return room
    left = [running.request.max_tokens - running.added for running in self.running]
    soon = len(self._rows) - len(left) + sum(steps <= self._patience for steps in left)
    return min(room, soon - self.waiting)

  @property
  def running(self) -> list[Running]:
    return [running for running in self._rows if running is not None]

  @property
  def cached_tokens(self) -> int:
    return PAGE * self._pages.used

  def add(self, *requests: Request) -> None:
    """Puts requests into the queue, all or none.

    Raises:
      UserError: one could never be answered.
      Full: there is no room for all.
    """
    for request in requests:
      self._check(request)
    if len(requests) > self.room:
      raise Full
    for request in requests:
      # The first requests of all owners come before the second of any, whoever came when.
      turn = max(self._turns.get(request.owner, 0), self._turn)
      self._turns[request.owner] = turn + 1
      self._queue.append((request.priority, turn, next(self._arrivals), request))
    self._queue.sort(key=lambda entry: entry[:3])

  def _check(self, request: Request) -> None:
    need = len(request.prompt) + request.max_tokens
    if not request.prompt or request.max_tokens < 1:
      raise UserError('a request needs a token of prompt and one to add at least: give it both')
    if need > self._slots:
      raise UserError(
        f'{len(request.prompt)} tokens of prompt and {request.max_tokens} to add are {need}, and '
        f'{self._slots} fit: shorten the prompt or ask for fewer'
      )

  def plan(self, now: float) -> Step:
    """What the next step computes; `now` in seconds of `time.monotonic`."""
    ended = self._drop(now)
    copies = self._admit()
    spans, room = [], self._budget
    decoding = [r for r in self.running if r.computed == len(r.tokens) - 1]
    # What a step's size leaves unused costs nothing, and few tokens cost as one: reading the weights.
    unused = max(_CHEAP, 1 << max(len(decoding) - 1, 0).bit_length())
    spare = min(self._wanted, self._budget, unused) - len(decoding)
    for running in decoding:
      guesses = self._guess(running, spare)
      spare -= len(guesses)
      room -= 1 + len(guesses)
      tokens = [running.tokens[-1], *guesses]
      spans.append(Span(running, running.computed, tokens, len(guesses), len(tokens)))
    reading = [running for running in self.running if running not in decoding]
    for running in sorted(reading, key=lambda r: r.order):
      stop = min(running.computed + room, len(running.tokens))
      if stop > running.computed:
        tokens = running.tokens[running.computed : stop]
        spans.append(Span(running, running.computed, tokens, 0, int(stop == len(running.tokens))))
        room -= len(tokens)
    return Step(spans, copies, ended)

  def advance(self, span: Span, drawn: Sequence[int]) -> list[int]:
    """Takes in what was drawn after each of the last `wanted` tokens of a span.

    Returns:
      The tokens that the sequence goes on with: up to the first that was not guessed.
    """
    running = span.running
    if not span.wanted:
      running.computed += len(span.tokens)
      self._pages.written(running.row, running.tokens[: running.computed])
      return []
    guesses = span.tokens[len(span.tokens) - span.drafts :]
    new = [drawn[0]]
    for guess, token in zip(guesses, drawn[1:], strict=True):
      if new[-1] != guess:
        break
      new.append(token)
    room = running.request.max_tokens - running.added
    ends = [i for i, token in enumerate(new) if token in running.request.ends]
    new = new[: min([room, *(i + 1 for i in ends)])]
    running.tokens += new
    running.computed = len(running.tokens) - 1
    self._pages.written(running.row, running.tokens[: running.computed])
    return new

  def finish(self, running: Running) -> None:
    """Frees the row of a sequence; what it holds stays there until the row is used."""
    self._rows[running.row] = None
    self._freed.append(running.row)

  def requests(self) -> list[Request]:
    """All that are not done."""
    return [running.request for running in self.running] + [entry[3] for entry in self._queue]

  def _drop(self, now: float) -> list[tuple[Request, Running | None, str]]:
    """Takes out whoever nobody waits for any more."""
    why = lambda request: (
      'cancelled'
      if request.cancelled
      else 'deadline'
      if request.deadline is not None and now >= request.deadline
      else ''
    )
    gone: list[tuple[Request, Running | None, str]] = [
      (entry[3], None, why(entry[3])) for entry in self._queue if why(entry[3])
    ]
    self._queue = [entry for entry in self._queue if not why(entry[3])]
    for running in self.running:
      if why(running.request):
        self.finish(running)
        gone.append((running.request, running, why(running.request)))
    return gone

  def _admit(self) -> list[Copy]:
    copies = []
    while self._queue and self._freed:
      _, turn, _, request = self._queue.pop(0)
      self._turn = max(turn, self._turn)
      self._turns = {owner: later for owner, later in self._turns.items() if later > self._turn}
      matches = self._pages.matches(request.prompt)
      reused = max(matches)
      row = max(self._freed, key=lambda row: (matches[row] == reused > 0, -self._freed.index(row)))
      source = row if matches[row] == reused else matches.index(reused)
      self._freed.remove(row)
      if row != source:
        copies.append(Copy(source, row))
        self._pages.copied(source, row, reused)
      self._pages.begin(row, reused)
      self._rows[row] = Running(
        request, row, list(request.prompt), reused, reused, next(self._admissions)
      )
    return copies

  def _guess(self, running: Running, spare: int) -> list[int]:
    """What followed the last tokens of a sequence where they stood before (Saxena 2023)."""
    most = min(self._drafts, spare, running.request.max_tokens - running.added - 1)
    if most < 1 or not running.request.settings.plain:
      return []
    tokens = running.tokens
    for stop in range(running.looked, len(tokens)):
      running.followed |= {
        tuple(tokens[stop - size : stop]): stop for size in _NGRAMS if size <= stop
      }
    running.looked = len(tokens)
    for size in _NGRAMS:
      start = running.followed.get(tuple(tokens[-size:]))
      if start is not None:
        return tokens[start : start + most]
    return []
