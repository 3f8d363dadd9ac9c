"""Answers that must match a JSON schema or a regular expression: which tokens may come next (llguidance).

Extra [serve]. Knows nothing about models.
"""

import json
import re
from typing import Any

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import Tokenizer

# What llguidance may do at once: a tenth to two fifths of its own bounds, with which a mask takes
# seconds. It follows a text that leaves no choice to its end and makes tokens of that for every mask, so
# this has a bound too.
_LIMITS: dict[str, Any] = {
  'initial_lexer_fuel': 100_000,
  'step_lexer_fuel': 20_000,
  'step_max_items': 20_000,
  'max_lexer_states': 50_000,
}
_MOST_FORCED = 8192  # bytes
_TOO_MUCH = re.compile('too (many|big|large|complex)|fuel|exceeded', re.IGNORECASE)


class Grammars:
  """Makes constraints for a tokenizer's tokens."""

  def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
    """`ends`: tokens that end an answer; none is allowed before it is whole."""
    try:
      import llguidance
    except ImportError:
      raise UserError("constrained answers need llguidance: pip install 'lmjax[serve]'") from None
    self._ends = ends
    self._vocab = tokenizer.vocab
    self._library: Any = llguidance
    self._tokens: Any = llguidance.LLTokenizer(
      llguidance.TokenizerWrapper(_Tokens(tokenizer, ends))
    )
    self._limits: Any = llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)

  def json_schema(self, schema: dict[str, Any] | None) -> 'Grammar':
    """JSON that a schema allows; None allows any object.

    Raises:
      UserError: the schema is not understood, or too complex.
    """
    text = json.dumps({'type': 'object'} if schema is None else schema)
    return self._grammar(self._library.LLMatcher.grammar_from_json_schema(text))

  def regex(self, pattern: str) -> 'Grammar':
    """Text that a regular expression (Rust's syntax) matches as a whole.

    Raises:
      UserError: the expression is not understood, or too complex.
    """
    return self._grammar(self._library.LLMatcher.grammar_from_regex(pattern))

  def _grammar(self, grammar: str) -> 'Grammar':
    matcher = self._library.LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
    found = Grammar(matcher, self._vocab)
    try:
      found.allowed()  # only then it is known whether anything may come at all
    except UserError:
      raise
    except ValueError as error:
      raise UserError(f'the schema or pattern is not understood: {error}: change it') from None
    return found


class Grammar:
  """A constraint of one answer, at the place it has come to."""

  def __init__(self, matcher: Any, vocab: int) -> None:
    self._matcher, self._vocab = matcher, vocab

  def fresh(self) -> 'Grammar':
    """The same at its beginning, for another answer."""
    copy = self._matcher.deep_copy()
    copy.reset()
    return Grammar(copy, self._vocab)

  def allowed(self) -> np.ndarray:
    """bool [V], which tokens may come next.

    Raises:
      UserError: to find out is too much work.
    """
    words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
    _check(self._matcher)
    return np.unpackbits(words, bitorder='little')[: self._vocab].astype(bool)

  def accept(self, token: int) -> bool:
    """Takes in the token that came; True where the answer is whole and nothing may follow.

    Raises:
      UserError: as above.
      ValueError: it may not come.
    """
    self._matcher.consume_token(token)
    if self._matcher.is_error():
      _check(self._matcher)
    return self._matcher.is_stopped()


def _check(matcher: Any) -> None:
  """UserError where a bound is reached, ValueError where anything else is wrong."""
  said = ' '.join(matcher.get_error().split())[:300]
  if said and not _TOO_MUCH.search(said):
    raise ValueError(said)
  forced = 0 if said else len(matcher.compute_ff_bytes())
  if forced > _MOST_FORCED:
    said = f'no choice for {forced:,} bytes in a row'
  if said:
    raise UserError(
      f'the schema or pattern is too complex ({said}): make it simpler, with fewer and smaller '
      'repetitions'
    )


class _Tokens:
  """A tokenizer as llguidance asks for one."""

  def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
    self._tokenizer = tokenizer
    controls = set(tokenizer.controls.values())
    # Control tokens spell nothing, and a name after byte 255 is how llguidance knows them.
    self.tokens = [
      b'\xff' + tokenizer.name(token).encode() if token in controls else tokenizer.spell(token)
      for token in range(tokenizer.vocab)
    ]
    self.eos_token_id = min(ends)
    self.bos_token_id = tokenizer.start
    self.special_token_ids = sorted(controls)

  def __call__(self, text: str | bytes) -> list[int]:
    return self._tokenizer.encode(text).tolist()
