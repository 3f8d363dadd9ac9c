"""Answers that must match a JSON schema or a regular expression: which tokens may come next (llguidance).

Extra [serve]. Knows nothing about models.
"""

import json
from typing import Any

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import Tokenizer


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

  def json_schema(self, schema: dict[str, Any] | None) -> 'Grammar':
    """JSON that a schema allows; None allows any object.

    Raises:
      UserError: the schema is not understood.
    """
    text = json.dumps({'type': 'object'} if schema is None else schema)
    return self._grammar(self._library.LLMatcher.grammar_from_json_schema(text))

  def regex(self, pattern: str) -> 'Grammar':
    """Text that a regular expression (Rust's syntax) matches as a whole.

    Raises:
      UserError: the expression is not understood.
    """
    return self._grammar(self._library.LLMatcher.grammar_from_regex(pattern))

  def _grammar(self, grammar: str) -> 'Grammar':
    wrong = self._library.LLMatcher.validate_grammar(grammar, self._tokens)
    matcher = self._library.LLMatcher(self._tokens, grammar, log_level=0)
    matcher.compute_bitmask()  # only then it is known whether anything may come at all
    wrong = wrong or (matcher.get_error() if matcher.is_error() else '')
    if wrong:
      said = ' '.join(wrong.split())
      raise UserError(f'the schema or pattern is not understood: {said}: change it')
    return Grammar(matcher, self._vocab)


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
    """bool [V], which tokens may come next."""
    words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
    return np.unpackbits(words, bitorder='little')[: self._vocab].astype(bool)

  def accept(self, token: int) -> bool:
    """Takes in the token that came; True where the answer is whole and nothing may follow.

    Raises:
      ValueError: the library gave up, as on a pattern of too many states.
    """
    self._matcher.consume_token(token)
    if self._matcher.is_error():
      raise ValueError(f'the constraint cannot be kept: {self._matcher.get_error()[:200]}')
    return self._matcher.is_stopped()


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
