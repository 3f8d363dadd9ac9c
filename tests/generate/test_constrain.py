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


PARTS = (
  {'enum': [f'value {n}' for n in range(12)]},
  {'type': 'string', 'pattern': '^[A-Z]{2}[0-9]{4,8}$'},
  {'type': 'string', 'minLength': 3, 'maxLength': 2000},
  {'type': 'array', 'items': {'$ref': '#/$defs/person'}, 'maxItems': 10},
  {'anyOf': [{'type': 'null'}, {'type': 'string', 'format': 'date-time'}]},
  {'type': 'array', 'items': {'type': 'array', 'items': {'type': 'number'}}},
)
PERSON = {
  'name': {'type': 'string'},
  'friends': {'type': 'array', 'items': {'$ref': '#/$defs/person'}},
}
LARGE = {
  'type': 'object',
  'properties': {f'field {n}': PARTS[n % len(PARTS)] for n in range(200)},
  'required': [f'field {n}' for n in range(0, 200, 2)],
  'additionalProperties': False,
  '$defs': {'person': {'type': 'object', 'properties': PERSON, 'required': ['name']}},
}


def test_a_large_schema_is_taken():
  grammar, rng = GRAMMARS.json_schema(LARGE), np.random.default_rng(0)
  for _ in range(100):
    assert not grammar.accept(int(rng.choice(np.flatnonzero(grammar.allowed()))))


def test_what_is_too_much_work_is_refused_at_once_or_when_it_is_found():
  with pytest.raises(UserError, match='too complex .*: make it simpler'):
    GRAMMARS.regex('(a{1000}){1000}')
  with pytest.raises(UserError, match='too complex .*: make it simpler'):
    draw(GRAMMARS.regex('b?c(a{1000}){1000}'), 0)


def test_a_token_that_may_not_come_is_not_taken_for_the_end():
  with pytest.raises(ValueError, match='satisfy the grammar'):
    GRAMMARS.regex('a').accept(int(TOKENIZER.encode('b')[0]))
