"""Whatever is drawn of the tokens that a constraint allows, the whole matches it."""

import json
import re

import jsonschema
import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import train
from lmjax.generate.constrain import Grammars

TOKENIZER = train(['{"name": "Ada", "age": 36}', '555-0199', 'true or false'] * 3, 300)
GRAMMARS = Grammars(TOKENIZER, frozenset([TOKENIZER.end]))
SCHEMA = {
  'type': 'object',
  'properties': {
    'kind': {'enum': ['a', 'b']},
    'sizes': {'type': 'array', 'items': {'type': 'integer'}, 'maxItems': 2},
  },
  'required': ['kind', 'sizes'],
  'additionalProperties': False,
}


def draw(grammar, seed):
  """A text of tokens drawn at random, those before it ends."""
  rng, tokens = np.random.default_rng(seed), []
  for _ in range(300):
    token = int(rng.choice(np.flatnonzero(grammar.allowed())))
    whole = grammar.accept(token)
    tokens += [] if token == TOKENIZER.end else [token]
    if whole:
      return TOKENIZER.text(tokens)
  raise AssertionError('never whole')


@pytest.mark.parametrize('seed', range(3))
def test_a_schema_is_kept(seed):
  found = json.loads(draw(GRAMMARS.json_schema(SCHEMA), seed))
  jsonschema.validate(found, SCHEMA)


def test_a_pattern_is_kept_and_a_fresh_one_begins_anew():
  grammar = GRAMMARS.regex(r'[0-9]{3}-[0-9]{4}( or (true|false))?')
  texts = [draw(grammar if n == 0 else grammar.fresh(), n) for n in range(4)]
  assert all(re.fullmatch(r'[0-9]{3}-[0-9]{4}( or (true|false))?', text) for text in texts)


def test_what_is_not_understood_is_refused():
  with pytest.raises(UserError, match=r'the schema or pattern is not understood: .*: change it'):
    GRAMMARS.regex('(')
  with pytest.raises(UserError, match=r'the schema or pattern is not understood: .*: change it'):
    GRAMMARS.json_schema({'type': 'no such type'})
  with pytest.raises(UserError, match=r'the schema or pattern is not understood: .*: change it'):
    GRAMMARS.regex(r'[^\s\S]')


def test_a_token_that_may_not_come_is_not_taken_for_the_end():
  with pytest.raises(ValueError, match='the constraint cannot be kept'):
    GRAMMARS.regex('a').accept(int(TOKENIZER.encode('b')[0]))
