"""Who computes what in which step, without a model: tokens drawn are made up here."""

import dataclasses

import pytest

from lmjax.core.errors import UserError
from lmjax.generate.cache import PAGE, Pages
from lmjax.generate.scheduler import Full, Request, Scheduler


@dataclasses.dataclass
class Settings:
  plain: bool = True


def make_request(prompt, max_tokens=4, **changes):
  prompt = list(range(prompt)) if isinstance(prompt, int) else prompt
  return Request(prompt, max_tokens, changes.pop('settings', Settings()), None, **changes)


def make_scheduler(**changes):
  return Scheduler(**{'rows': 2, 'slots': 200, 'budget': 8, 'queue': 4, 'wanted': 32, **changes})


def run(scheduler, arrivals, steps, draw=lambda span: [900] * span.wanted):
  """The trace of `steps` steps: (request, row, first token, tokens, draws) of each span.

  `arrivals`: step -> [(name, request)].
  """
  names, trace = {}, []
  for number in range(steps):
    for name, request in arrivals.get(number, []):
      names[id(request)] = name
      scheduler.add(request)
    step = scheduler.plan(float(number))
    line = []
    for span in step.spans:
      running = span.running
      line.append(
        (names[id(running.request)], running.row, span.start, len(span.tokens), span.wanted)
      )
      scheduler.advance(span, draw(span))
      if running.added >= running.request.max_tokens:
        scheduler.finish(running)
    trace.append(line)
  return trace


def test_one_that_comes_while_others_generate_gets_its_first_token_in_its_prefills_step():
  arrivals = {0: [('a', make_request(3, 6))], 2: [('b', make_request(5, 2))]}
  assert run(make_scheduler(), arrivals, 7) == [
    [('a', 0, 0, 3, 1)],
    [('a', 0, 3, 1, 1)],
    [('a', 0, 4, 1, 1), ('b', 1, 0, 5, 1)],
    [('a', 0, 5, 1, 1), ('b', 1, 5, 1, 1)],
    [('a', 0, 6, 1, 1)],
    [('a', 0, 7, 1, 1)],
    [],
  ]


def test_a_long_prompt_is_cut_and_the_others_go_on():
  arrivals = {0: [('a', make_request(2, 9))], 1: [('b', make_request(17, 2))]}
  assert run(make_scheduler(), arrivals, 5) == [
    [('a', 0, 0, 2, 1)],
    [('a', 0, 2, 1, 1), ('b', 1, 0, 7, 0)],
    [('a', 0, 3, 1, 1), ('b', 1, 7, 7, 0)],
    [('a', 0, 4, 1, 1), ('b', 1, 14, 3, 1)],
    [('a', 0, 5, 1, 1), ('b', 1, 17, 1, 1)],
  ]


def test_who_waits_is_taken_by_priority_then_by_turns_of_owners_then_by_arrival():
  scheduler = make_scheduler(rows=1, queue=5)
  asked = [('a', 'x', 0), ('b', 'x', 0), ('c', 'x', 0), ('d', 'y', 0), ('e', 'z', -1)]
  arrivals = [(name, make_request(2, 1, owner=o, priority=p)) for name, o, p in asked]
  trace = run(scheduler, {0: arrivals}, 6)
  assert [line[0][0] for line in trace if line] == ['e', 'a', 'd', 'b', 'c']


def test_the_queue_is_bounded_and_what_never_fits_is_refused():
  scheduler = make_scheduler(rows=1, queue=2)
  for _ in range(2):
    scheduler.add(make_request(2, 5))
  with pytest.raises(Full):
    scheduler.add(make_request(2))
  (span,) = scheduler.plan(0.0).spans
  with pytest.raises(Full):  # in a row, and without its first token
    scheduler.add(make_request(2))
  scheduler.advance(span, [7])
  scheduler.add(make_request(2))
  with pytest.raises(Full):
    scheduler.add(make_request(2))
  with pytest.raises(UserError, match='190 tokens of prompt and 11 to add are 201, and 200 fit'):
    scheduler.add(make_request(190, 11))
  with pytest.raises(UserError, match='8 sequences at a time leave no room for prompts'):
    make_scheduler(rows=8)


def test_cancelled_and_late_ones_leave_with_the_next_step():
  scheduler = make_scheduler(rows=1)
  first, late, third = make_request(2), make_request(3, deadline=5.0), make_request(4)
  for request in (first, late, third):
    scheduler.add(request)
  assert [span.running.request for span in scheduler.plan(1.0).spans] == [first]
  first.cancelled = True
  step = scheduler.plan(6.0)
  assert [(r, why) for r, _, why in step.ended] == [(late, 'deadline'), (first, 'cancelled')]
  assert [span.running.request for span in step.spans] == [third]


def test_a_beginning_that_a_row_holds_is_not_computed_again():
  text = list(range(100, 100 + 3 * PAGE))
  scheduler = make_scheduler(rows=3, budget=300, slots=300)
  arrivals = {
    0: [('a', make_request(text, 3))],
    1: [('b', make_request([*text[: 2 * PAGE], 1, 2], 3))],  # while a generates: copied
    4: [('c', make_request(text, 1))],  # a's own row, but its last token
    5: [('d', make_request([1, *text[1:]], 1))],
  }
  trace = run(scheduler, arrivals, 6)
  assert trace[0] == [('a', 0, 0, 96, 1)]
  assert trace[1] == [('a', 0, 96, 1, 1), ('b', 1, 64, 2, 1)]
  assert trace[4] == [('c', 0, 64, 32, 1)]
  assert trace[5] == [('d', 2, 0, 96, 1)]


def test_a_live_rows_pages_are_copied():
  text = list(range(2 * PAGE))
  scheduler = make_scheduler(budget=300)
  scheduler.add(make_request([*text, 1], 9))
  (span,) = scheduler.plan(0.0).spans
  scheduler.advance(span, [5])
  scheduler.add(make_request([*text, 2], 9))
  assert scheduler.plan(0.0).copies == [(0, 1)]
  assert scheduler.cached_tokens == 4 * PAGE


def test_pages_of_equal_tokens_after_others_are_others():
  pages = Pages(1)
  pages.written(0, [1] * PAGE + [2] * PAGE)
  assert pages.matches([1] * PAGE + [2] * PAGE + [3]) == [2 * PAGE]
  assert pages.matches([2] * PAGE + [2] * PAGE + [3]) == [0]
  pages.begin(0, PAGE)
  assert pages.matches([1] * PAGE + [2] * PAGE + [3]) == [PAGE]


def test_what_followed_the_same_words_is_guessed_and_kept_up_to_the_first_mistake():
  prompt = [1, 2, 3, 4, 5, 6, 7, 1, 2]
  scheduler = make_scheduler(rows=1, budget=16, drafts=3)
  answers = {0: [3], 9: [4, 5, 9, 9], 12: [8]}
  trace = run(scheduler, {0: [('a', make_request(prompt, 9))]}, 3, lambda s: answers[s.start])
  assert trace == [[('a', 0, 0, 9, 1)], [('a', 0, 9, 4, 4)], [('a', 0, 12, 1, 1)]]
  (running,) = scheduler.running
  assert running.tokens == [*prompt, 3, 4, 5, 9, 8]


def test_where_a_draw_depends_on_those_before_nothing_is_guessed():
  request = make_request([1, 2, 3, 1, 2], 9, settings=Settings(plain=False))
  scheduler = make_scheduler(rows=1, drafts=3)
  trace = run(scheduler, {0: [('a', request)]}, 2, lambda span: [3] * span.wanted)
  assert trace[1] == [('a', 0, 5, 1, 1)]


def test_who_might_wait_longer_than_its_patience_is_refused():
  scheduler = make_scheduler(patience=3)
  scheduler.add(make_request(3, 6), make_request(3, 9))
  with pytest.raises(Full):
    scheduler.add(make_request(3))
  assert list(rooms_of(scheduler, 6)) == [
    0,
    0,
    1,
    1,
    1,
    2,
  ]  # the first has 3 to go after 3 steps, the other after 6


def rooms_of(scheduler, steps):
  """The room after each step; one that is done leaves its row at once."""
  for number in range(steps):
    for span in scheduler.plan(float(number)).spans:
      scheduler.advance(span, [900] * span.wanted)
      if span.running.added >= span.running.request.max_tokens:
        scheduler.finish(span.running)
    yield scheduler.room
