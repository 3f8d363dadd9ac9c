"""No body makes the server fail: wrong ones are refused, and all answers are as its document says."""

import json
import random

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from small_server import TIMEOUT

from lmjax.serve.schemas import ChatRequest, CompletionRequest

PATHS = ('/v1/chat/completions', '/v1/completions', '/v1/embeddings', '/search', '/ads')
SAME = {
  'model': 'tiny',
  'temperature': 0.5,
  'top_p': 0.9,
  'n': 1,
  'seed': 3,
  'stop': ['a'],
  'max_tokens': 2,
  'presence_penalty': 0.1,
  'frequency_penalty': 0.1,
  'logit_bias': {'3': 1.0},
  'stream': False,
  'stream_options': None,
  'response_format': {'type': 'text'},
  'user': 'me',
  'top_k': 5,
  'min_p': 0.1,
  'repetition_penalty': 1.1,
  'stop_token_ids': [1],
  'priority': 1,
  'timeout_seconds': 60,
}
GOOD = {
  **SAME,
  'messages': [{'role': 'user', 'content': 'hello'}],
  'max_completion_tokens': 2,
  'logprobs': True,
  'top_logprobs': 2,
  'tools': [{'type': 'function', 'function': {'name': 'look', 'parameters': {'type': 'object'}}}],
  'tool_choice': 'none',
  'parallel_tool_calls': False,
  'store': False,
  'metadata': {'a': 'b'},
}
TEXT = {**SAME, 'prompt': 'a', 'logprobs': 1, 'echo': False, 'suffix': None, 'best_of': 1}
EVERY = {PATHS[0]: (GOOD, ChatRequest), PATHS[1]: (TEXT, CompletionRequest)}
KEYS = ('9' * 5000, '0' * 12 + '3', '-1', '', '\u0663', '1_0', '\ud800', '3.0')
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
  with httpx.Client(base_url=address, timeout=TIMEOUT) as http:
    for number in range(count):
      body = malformed(rng)
      kind = rng.choice(['application/json'] * 9 + ['text/plain'])
      path = PATHS[number % len(PATHS)]
      answer = http.post(path, content=body, headers={'content-type': kind})
      assert 400 <= answer.status_code < 500, (body, answer.text)
      assert set(answer.json()['error']) == {'message', 'type', 'param', 'code'}
  assert client.models.list().data


@pytest.mark.parametrize('count', [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_a_field_holds_the_server_goes_on(address, client, count):
  rng, refused = random.Random(count), 0
  with httpx.Client(base_url=address, timeout=TIMEOUT) as http:
    for path, (body, schema) in EVERY.items():
      assert set(body) == set(schema.model_fields)
      assert http.post(path, json=body).status_code == 200
    for number in range(count):
      path = PATHS[number % 2]
      body = {**EVERY[path][0]}
      if rng.random() < 0.2:
        body['logit_bias'] = {rng.choice(KEYS): rng.choice([1.0, *WRONG])}
      else:
        body[rng.choice(list(body))] = rng.choice(WRONG)
      content = json.dumps(body).encode()
      answer = http.post(path, content=content, headers={'content-type': 'application/json'})
      assert answer.status_code < 500, (body, answer.text)
      if answer.status_code != 200:
        refused += 1
        assert set(answer.json()['error']) == {'message', 'type', 'param', 'code'}
  assert refused > count / 3
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
