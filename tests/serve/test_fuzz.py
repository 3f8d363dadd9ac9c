"""No body makes the server fail: wrong ones are refused, and all answers are as its document says."""

import json
import random

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings

PATHS = ('/v1/chat/completions', '/v1/completions', '/v1/embeddings', '/search', '/ads')
GOOD = {
  'model': 'tiny',
  'messages': [{'role': 'user', 'content': 'hello'}],
  'max_tokens': 2,
  'temperature': 0.5,
  'logit_bias': {'3': 1.0},
  'stop': ['a'],
}
WRONG = (None, True, -1, 1e400, 'x', [], {}, [[]], {'a': None}, '\ud800', 10**30, -0.5, [None])


def malformed(rng):
  """Bytes that are no request."""
  text = json.dumps(GOOD)
  kind = rng.randrange(7)
  if kind == 0:
    return rng.randbytes(rng.randrange(200))
  if kind == 1:
    return text[: rng.randrange(len(text) - 1)].encode()
  if kind == 2:
    return (rng.choice('[{') * rng.randrange(1, 20_000)).encode()
  if kind == 3:
    place = rng.randrange(len(text))
    return (
      text[:place].encode()
      + rng.choice([b'\xff', b'\x00', b'\xed\xa0\x80'])
      + text[place:].encode()
    )
  if kind == 4:
    return json.dumps({**GOOD, f'x{rng.randrange(1000)}': rng.choice(WRONG)}).encode()
  if kind == 5:
    body = {**GOOD, rng.choice(['model', 'messages']): rng.choice(WRONG[:-1])}
    return json.dumps(body).encode('utf-8', 'surrogatepass')
  body = {**GOOD, 'messages': [{'role': rng.choice(WRONG), 'content': rng.choice(WRONG)}]}
  return json.dumps(body).encode()


@pytest.mark.parametrize('count', [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_bodies_are_all_refused_and_none_kills_it(address, client, count):
  rng = random.Random(count)
  with httpx.Client(base_url=address) as http:
    for number in range(count):
      body = malformed(rng)
      kind = rng.choice(['application/json'] * 9 + ['text/plain'])
      path = PATHS[number % len(PATHS)]
      answer = http.post(path, content=body, headers={'content-type': kind})
      assert 400 <= answer.status_code < 500, (body, answer.text)
      assert set(answer.json()['error']) == {'message', 'type', 'param', 'code'}
  assert client.models.list().data


@pytest.mark.slow
def test_every_answer_is_as_its_openapi_document_says(address):
  schemathesis = pytest.importorskip('schemathesis')
  from schemathesis.checks import not_a_server_error
  from schemathesis.specs.openapi import checks

  chosen = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
  ]
  document = schemathesis.openapi.from_url(f'{address}/openapi.json')
  seen = set()
  for result in document.get_all_operations():
    operation = result.ok()

    @settings(
      max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def ask(case):
      case.call_and_validate(checks=chosen)
      seen.add(case.path)

    ask()
  assert set(PATHS) <= seen
