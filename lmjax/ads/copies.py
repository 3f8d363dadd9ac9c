"""Copy to learn from: conversations that ask for the copy of a brief, and pairs of which one answer is better.

Made up of `generator.py`'s briefs, or a user's JSONL, a line a row:

    {"brief": {"product": ...}, "copy": {"headline": "...", "body": "...", "action": "..."}}
    {"brief": {"product": ...}, "chosen": {"headline": ...}, "rejected": {"headline": ...}}

A model is asked as `Writer` asks it. What is made up follows a rule, a voice of words.json for each style and
plain words where none is asked for: a model that learns it speaks as that rule does, which says nothing of people.
"""

import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import Brief, Refused, parse_brief
from lmjax.ads.creative import Copy, find_problems, vocabulary, voice_of, wordings
from lmjax.ads.generator import Sample, make_samples
from lmjax.ads.maker import limits_for
from lmjax.ads.studio import accept_brief
from lmjax.ads.writer import Plan, answer_of, copy_messages, plan_copy, word_copy
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.data import files, formats
from lmjax.data.conversations import Conversations
from lmjax.data.formats import Row

_PLANS, _TRIES = 4, 12  # that are drawn, and wordings of each, until one keeps the lengths
_FORMATS = (['300x250'], ['728x90', '1200x628'], ['1200x628', '1080x1080'])
_NO_STYLE = 0.1  # share of the briefs that are made up
# Problems that a user's copy may have and still be taught: the studio's grammar holds what a model makes of
# them to its wordings. Wrong figures, lengths, must words and what the policy refuses are not taught.
_TAUGHT = ('claim', 'repeat')


class Copies(Conversations):
  """Briefs and a copy of each."""

  answers: ClassVar[tuple[str, ...]] = ('copy',)

  source: str = leaf(
    '', 'JSONL of briefs, each with its copy (lmjax/ads/copies.py); empty: made up.'
  )
  made: int = leaf(480, 'Briefs that are made up where there is no --source.', low=2)
  made_seed: int = leaf(0, 'Of what is made up.', low=0)

  def _every(self) -> Iterator[Row]:
    if not self.source:
      yield from self._made_up()
      return
    if not (paths := files.matches(self.source)):
      raise UserError(f'--source={self.source}: there is no such file: pass a JSONL file or a glob')
    for path in paths:
      for row in formats.read_rows(path, formats.look(path)):
        yield row if row.problem else self._read(row)

  def _read(self, row: Row) -> Row:
    """A user's row as one to learn from, or with the problem that it has."""
    try:
      brief = accept_brief(row.values['brief'])
      limits = limits_for(brief)
      copies = [_copy_of(row.values[name]) for name in self.answers]
    except Refused as error:
      return row._replace(problem=f'with a brief that is refused ({error.reason})')
    except (KeyError, TypeError, AttributeError):
      wanted = ' and '.join(['brief', *self.answers])
      return row._replace(problem=f'without {wanted} as they are asked for')
    problems = [one.kind for one in find_problems(brief, copies[0], limits)]
    if wrong := [kind for kind in problems if kind not in _TAUGHT]:
      return row._replace(problem=f'with a copy that has a problem ({wrong[0]})')
    return row._replace(values=_values(brief, copies))

  def _made_up(self) -> Iterator[Row]:
    random = np.random.default_rng((self.made_seed, 17))
    styles = load_taxonomy().styles
    for number, sample in enumerate(make_samples(self.made, self.made_seed, 'taught'), 1):
      style = sample.brief['audience']['style']
      words = ('',) if random.random() < _NO_STYLE else (style, *styles[style])
      audience = {**sample.brief['audience'], 'style': words[random.integers(len(words))]}
      formats_of = _FORMATS[random.integers(len(_FORMATS))]
      brief = parse_brief({**sample.brief, 'audience': audience, 'formats': formats_of})
      place = f'made up:{number}'
      plan, good = _planned(brief, random)
      if good is None or not _told(sample, good):
        yield Row({}, place, 'without a wording that is short enough')
      else:
        copies = self._copies(sample, brief, plan, good, random)
        yield Row(_values(brief, copies), place)

  def _copies(
    self, sample: Sample, brief: Brief, plan: Plan, good: Copy, random: np.random.Generator
  ) -> list[Copy]:
    """What `answers` names, made up."""
    del sample, brief, plan, random
    return [good]


class CopyPairs(Copies):
  """Briefs and two copies of each, of which the first is better.

  Of what is made up the other has a wrong fact, another voice or none, or a sentence twice.
  """

  answers: ClassVar[tuple[str, ...]] = ('chosen', 'rejected')

  def _copies(
    self, sample: Sample, brief: Brief, plan: Plan, good: Copy, random: np.random.Generator
  ) -> list[Copy]:
    kind = random.integers(3)
    if kind == 0:
      return [good, _with_wrong_fact(sample, good, random)]
    voices = [voice for voice in ('', *vocabulary()['voices']) if voice != voice_of(brief)]
    other = _spoken(brief, plan, voices[random.integers(len(voices))], random)
    if kind == 1 and voice_of(brief) and other is not None:
      return [good, other]
    first, *rest = re.split(r'(?<=[.!?]) ', good.body)
    return [good, good._replace(body=' '.join([first, *rest[:-1], first]))]


def _planned(brief: Brief, random: np.random.Generator) -> tuple[Plan, Copy | None]:
  """A plan, and it in the voice of its style; None where no plan that is drawn has such a wording."""
  plans = (plan_copy(brief, limits_for(brief), random) for _ in range(_PLANS))
  each = ((plan, _spoken(brief, plan, voice_of(brief), random)) for plan in plans)
  return next((one for one in each if one[1] is not None), (Plan((), ()), None))


def _spoken(brief: Brief, plan: Plan, voice: str, random: np.random.Generator) -> Copy | None:
  """A plan in a voice, plain sentences among its own, or in '' plain; None where no wording is short enough."""
  own, plain = vocabulary()['voices'].get(voice), wordings('')
  words = {**own, 'sentences': wordings(voice)['sentences']} if own else plain
  drawn = (word_copy(brief, plan, random, words) for _ in range(_TRIES))
  limits = limits_for(brief)
  fits = lambda copy: all(len(text) <= most for text, most in zip(copy, limits, strict=True))
  return next(filter(fits, drawn), None)


def _with_wrong_fact(sample: Sample, copy: Copy, random: np.random.Generator) -> Copy:
  """`copy` with the other value of one of the slots that it tells."""
  told = _told(sample, copy)
  place = told[random.integers(len(told))]
  fact, wrong = sample.brief['facts'][place], sample.others[place]
  write = lambda found: wrong[:1].upper() + wrong[1:] if found[0][:1].isupper() else wrong
  return Copy(*(re.sub(re.escape(fact), write, text, flags=re.IGNORECASE) for text in copy))


def _told(sample: Sample, copy: Copy) -> list[int]:
  """The slots that a copy tells."""
  said = copy.text.casefold()
  return [i for i, fact in enumerate(sample.brief['facts']) if fact.casefold() in said]


def _copy_of(said: dict[str, str]) -> Copy:
  return Copy(*(said[name].strip() for name in Copy._fields))


def _values(brief: Brief, copies: list[Copy]) -> dict:
  """A row as `data/conversations.py` reads it, or with two copies as `data/preference.py` does."""
  asked = copy_messages(brief, limits_for(brief))
  if len(copies) == 1:
    return {'messages': [*asked, {'role': 'assistant', 'content': answer_of(copies[0])}]}
  chosen, rejected = map(answer_of, copies)
  return {'prompt': asked, 'chosen': chosen, 'rejected': rejected}
