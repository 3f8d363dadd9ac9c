"""What is not advertised, and to whom nothing is: a reason for each refusal.

Words and phrases are data (policy.json): per reason, what is refused (`terms`), what only looks like
it (`friends`) and what an audience may not be chosen by (`audience`). In a term a space is any run of
separators, ` .. ` up to four words between, `{name}` one of a set's words; it may end in a plural.
"""

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.ads.brief import Brief, Refused, parse_brief

# The gravest first: what a brief is refused for where more than one holds.
REASONS = (
  'invalid', 'hate', 'sexual', 'violence', 'protected_targeting', 'prohibited_goods', 'deception',
  'personal_data', 'political', 'health_claim', 'unsupported_claim', 'restricted_goods',
)  # fmt: skip
_DATA = Path(__file__).with_name('policy.json')
_GAP, _NEAR = r'[^\w\n]+', r'(?:[^\w\n]+\w+){0,4}?[^\w\n]+'
_NO = re.compile(r'\b(no|not|non|without|zero|never|anti|free of|free from|contains no)[ -]+$')
_FREE = re.compile(r'[ -](free|less)\b')
# Letters of other scripts, and signs, that pass for Latin ones.
_ALIKE = str.maketrans(
  'авекмнорстухіјѕԁɡӏοαερτυικνχη¡|', 'abekmhopctyxijsdgloaeptuikvxnil', '\u00ad\u200b\u200c\u200d\u2060\ufeff'
)  # fmt: skip
_LEET = [str.maketrans('013457@$!€8', f'o{one}eastasieb') for one in 'il']
_SPACED = re.compile(r'(?<![\w@$])(?:[\w@$!][ ._*/-]{1,2}){3,}[\w@$!](?![\w])')


class Finding(NamedTuple):
  """Why something is refused, and the words that say it."""

  reason: str
  words: str


class _Rule(NamedTuple):
  terms: re.Pattern[str]
  audience: re.Pattern[str]
  friends: re.Pattern[str]


@functools.cache
def rules() -> dict[str, _Rule]:
  """Reason -> its patterns; `special` is what has no audience by age or gender: homes, jobs, credit."""
  data = json.loads(_DATA.read_text(encoding='utf-8'))
  sets = {name: f'(?:(?:{"|".join(words)})(?:e?s)?)' for name, words in data['sets'].items()}
  return {
    reason: _Rule(*(_pattern(rule.get(key, []), sets) for key in _Rule._fields))
    for reason, rule in data['rules'].items()
  }


def judge_brief(value: Any) -> Finding | None:
  """Why the brief that a JSON value stands for is refused; None where it is not."""
  try:
    return next(iter(review_brief(parse_brief(value))), None)
  except Refused as error:
    return Finding(error.reason, str(error))


def review_brief(brief: Brief) -> list[Finding]:
  """Why `brief` is refused, a finding a reason, the gravest first; empty where it is not."""
  asked = '\n'.join([brief.product, *brief.facts, *brief.must, brief.tone, brief.picture])
  audience = '\n'.join([*brief.audience.interests, brief.audience.style, brief.audience.gender])
  found = {finding.reason: finding for finding in review_text(f'{asked}\n{audience}')}
  protected = targeted(audience)
  special = _first(rules()['special'].terms, 'special', views('\n'.join([asked, audience])))
  narrow = brief.audience.age != 'any' or brief.audience.gender.casefold() not in ('', 'any', 'all')
  told = _first(rules()['special'].audience, 'special', views(f'{asked}\n{audience}'))
  if not protected and special and (narrow or told):
    protected = f'{special} by {told or "age or gender"}'
  if protected:
    found.setdefault('protected_targeting', Finding('protected_targeting', protected))
  return sorted(found.values(), key=lambda finding: REASONS.index(finding.reason))


def targeted(audience: str) -> str:
  """The words by which a text that names an audience chooses it by a protected attribute; else ''."""
  return _first(rules()['protected_targeting'].audience, 'protected_targeting', views(audience))


def review_text(text: str, reasons: Iterable[str] = ()) -> list[Finding]:
  """What a text says that is not published, a finding a reason, of `reasons` or of all."""
  seen = views(text)
  wanted = tuple(reasons) or REASONS[1:]
  found = ((reason, _first(rules()[reason].terms, reason, seen)) for reason in wanted)
  return [Finding(reason, words) for reason, words in found if words]


def views(text: str) -> list[str]:
  """`text` in lower case and Latin letters, as written and with letters that were disguised undone."""
  folded = unicodedata.normalize('NFKD', text).casefold().translate(_ALIKE)
  plain = ''.join(one for one in folded if not unicodedata.combining(one)).replace('’', "'")
  joined = _SPACED.sub(lambda run: re.sub(r'[ ._*/-]', '', run[0]), plain)
  leet = [_undo_leet(joined, table) for table in _LEET]
  closed = [re.sub(r'(?<=[a-z])[-._*]+(?=[a-z])', '', one) for one in leet]
  single = re.sub(r'([a-z])\1{2,}', r'\1', closed[0])
  return list(dict.fromkeys([plain, joined, *leet, *closed, single]))


def _undo_leet(text: str, table: dict[int, int]) -> str:
  """Digits and signs to letters, in words that hold letters too."""
  return re.sub(r'\S*[a-z]\S*', lambda word: word[0].translate(table), text)


def _first(pattern: re.Pattern[str], reason: str, seen: list[str]) -> str:
  """The first words of a pattern that are not denied (`no`, `-free`) and no false friend; else ''."""
  for text in seen:
    kept = rules()[reason].friends.sub(' _ ', text)
    for match in pattern.finditer(kept):
      denied = _NO.search(kept, max(0, match.start() - 16), match.start())
      if reason == 'hate' or not (denied or _FREE.match(kept, match.end())):
        return match[0]
  return ''


def _pattern(terms: list[str], sets: dict[str, str]) -> re.Pattern[str]:
  """One pattern for `terms`; of none, one that is nowhere."""
  if not terms:
    return re.compile(r'(?!)')
  whole = '|'.join(f'(?:{term})' for term in terms)
  for name, words in itertools.chain(sets.items(), sets.items()):  # sets may name sets
    whole = whole.replace('{' + name + '}', words)
  whole = re.sub(r'\[[^\]]*\]', lambda one: one[0].replace(' ', r'\x20'), whole)
  whole = whole.replace(' ?', r'[^\w\n]*').replace(' .. ', _NEAR).replace(' ', _GAP)
  return re.compile(rf"(?<![\w])(?:{whole})(?:e?s|'s)?(?!\w)")
