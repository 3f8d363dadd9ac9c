"""What the server refuses, what it tells of itself, and who gets how much."""

import asyncio
import json
import re
import socket
import struct
import threading
import time

import httpx2 as httpx
import jax
import openai
import pytest
from small_server import TIMEOUT, TOKENIZER, make_client, make_service, serving

from lmjax.core.errors import UserError
from lmjax.serve.errors import ApiError
from lmjax.serve.guard import Guard
from lmjax.serve.keys import PREFIX, Key, Keys, add_key, hash_key, read_keys
from lmjax.serve.limits import Limits

BODY = {
  'model': 'tiny',
  'messages': [{'role': 'user', 'content': 'secret words'}],
  'max_tokens': 4,
  'seed': 0,  # of some seeds the first token ends the answer, and an empty one is not moderated
}
CHAT = '/v1/chat/completions'


def lines(folder):
  return [json.loads(line) for line in (folder / 'audit.jsonl').read_text().splitlines()]


@pytest.fixture
def http(address):
  with httpx.Client(base_url=address, timeout=TIMEOUT) as found:
    yield found


def test_every_answer_has_an_id_and_headers_that_keep_a_page_to_itself(http):
  ids = set()
  for path in ('/', '/health', '/v1/models', '/no/such'):
    headers = http.get(path).headers
    ids.add(headers['x-request-id'])
    assert "default-src 'none'" in headers['content-security-policy']
    assert "script-src 'self'" in headers['content-security-policy']
    assert headers['x-content-type-options'] == 'nosniff'
    assert 'access-control-allow-origin' not in headers
  assert len(ids) == 4


def test_the_audit_has_who_and_how_much_and_no_text(http, audit_folder):
  answer = http.post(CHAT, json=BODY)
  mine = lambda: [e for e in lines(audit_folder) if e['request'] == answer.headers['x-request-id']]
  wait_for(mine)  # it is written when all is sent
  (entry,) = mine()
  assert (entry['status'], entry['key'], entry['model']) == (200, '127.0.0.1', 'tiny')
  assert entry['tokens'] == answer.json()['usage']['completion_tokens']
  assert entry['prompt_tokens'] == answer.json()['usage']['prompt_tokens']
  assert 'secret' not in (audit_folder / 'audit.jsonl').read_text()


@pytest.mark.parametrize(
  ('headers', 'told'),
  [
    ({'origin': 'https://elsewhere.example'}, 'pages of other sites may not ask'),
    ({'host': 'elsewhere.example'}, 'this server answers as 127.0.0.1 or localhost'),
  ],
)
def test_other_sites_and_other_names_are_refused(http, headers, told):
  answer = http.post(CHAT, json=BODY, headers=headers)
  assert answer.status_code == 403
  assert told in answer.json()['error']['message']


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(http):
  large = b'{"model": "' + b'a' * (1 << 20) + b'"}'
  headers = {'content-type': 'application/json'}
  for content in (large, iter([large[: 1 << 19], large[1 << 19 :]])):
    answer = http.post(CHAT, content=content, headers=headers)
    assert (answer.status_code, answer.json()['error']['code']) == (413, 'body_too_large')
    assert 'the body has more than 1,048,576 bytes' in answer.json()['error']['message']


@pytest.mark.parametrize(
  ('path', 'method', 'status'),
  [('/v1/none', 'GET', 404), (CHAT, 'GET', 405), ('/../x', 'GET', 404)],
)
def test_wrong_paths_and_methods_are_told_in_the_same_shape(http, path, method, status):
  answer = http.request(method, path)
  assert answer.status_code == status
  assert set(answer.json()['error']) == {'message', 'type', 'param', 'code'}


@pytest.mark.parametrize('path', ['/', '/health', '/ready', '/v1/models', '/page/app.js'])
def test_the_head_of_an_answer_may_be_asked_for_alone(http, path):
  head, whole = http.head(path), http.get(path)
  assert (head.status_code, head.content) == (200, b'')
  assert head.headers['content-length'] == str(len(whole.content))


@pytest.mark.parametrize('kind', ['application/x-www-form-urlencoded', 'text/plain', ''])
def test_a_body_that_does_not_come_as_json_is_told_how_to(http, kind):
  answer = http.post(CHAT, content=json.dumps(BODY), headers={'content-type': kind})
  assert answer.status_code == 415
  assert 'send JSON with the header Content-Type: application/json' in answer.text


def test_an_error_tells_no_path_of_this_machine(http):
  for content in (b'{', b'\xff', b'[' * 100_000, b'null', b'{"model": "\\ud800"}'):
    answer = http.post(CHAT, content=content, headers={'content-type': 'application/json'})
    assert answer.status_code == 400
    assert not re.search(r'/(work|home|usr|tmp|root)|Traceback|\.py', answer.text)


def test_all_that_requests_need_is_there_when_it_is_ready(client, service, caplog):
  jax.config.update('jax_log_compiles', True)
  try:
    jax.jit(lambda x: x + 1)(1.0)
    assert 'Compiling' in caplog.text
    caplog.clear()
    for length in (1, 65, 200, 256):
      client.embeddings.create(model='tiny', input=[3] * length)
  finally:
    jax.config.update('jax_log_compiles', False)
  assert 'Compiling' not in caplog.text
  assert service._grammars is not None


def test_ready_and_the_api_wait_for_the_model(tmp_path):
  with serving(make_service(), tmp_path, warm=False) as address:
    assert httpx.get(f'{address}/health', timeout=TIMEOUT).status_code == 200
    assert httpx.get(f'{address}/ready', timeout=TIMEOUT).status_code == 503
    answer = httpx.post(f'{address}{CHAT}', json=BODY, timeout=TIMEOUT)
    assert (answer.status_code, answer.headers['retry-after']) == (503, '5')


def test_an_engine_that_fails_is_told_to_who_waits_and_by_health(tmp_path):
  service = make_service()
  with serving(service, tmp_path) as address:
    service.engine._params = {}  # as if memory were lost
    ask = lambda: httpx.post(f'{address}{CHAT}', json=BODY, timeout=TIMEOUT)
    answers = [ask(), ask()]
    states = [httpx.get(f'{address}/{path}', timeout=TIMEOUT) for path in ('health', 'ready')]
  assert [answer.status_code for answer in [*answers, *states]] == [500, 503, 503, 503]
  for answer in [*answers, *states]:
    assert 'the engine has ended: start the server again' in answer.json()['error']['message']


def test_an_engine_that_hangs_lets_its_clients_go(tmp_path, monkeypatch):
  monkeypatch.setattr('lmjax.serve.service.GRACE_SECONDS', 0.05)
  service = make_service()
  service.ready = True  # though its engine was never started
  with serving(service, tmp_path, warm=False) as address:
    late = {**BODY, 'timeout_seconds': 0.01}
    answer = httpx.post(f'{address}{CHAT}', json=late, timeout=TIMEOUT)
  assert answer.status_code == 503
  assert 'the engine does not go on' in answer.json()['error']['message']


def test_metrics_count_what_was_done(http):
  read = lambda: dict(
    re.findall(r'^(lmjax_\w+(?:{[^}]*})?) (\S+)$', http.get('/metrics').text, re.M)
  )
  before = read()
  tokens = http.post(CHAT, json=BODY).json()['usage']['completion_tokens']
  after = read()
  grown = lambda name: float(after[name]) - float(before.get(name, 0))
  assert grown('lmjax_tokens_total') >= tokens
  assert grown('lmjax_time_to_first_token_seconds_count') == 1
  assert grown(f'lmjax_requests_total{{route="{CHAT}",status="200"}}') == 1
  assert float(after['lmjax_queue']) == 0


@pytest.mark.parametrize('stream', [True, False], ids=['streamed', 'whole'])
@pytest.mark.parametrize('reset', [True, False], ids=['reset', 'closed'])
def test_a_client_that_vanishes_has_no_slot_in_the_next_step(
  service, address, audit_folder, monkeypatch, stream, reset
):
  steps, held, going = [], threading.Event(), threading.Event()

  def watch(step):
    steps.append(step)
    if len(steps) == 20:
      held.set()
      assert going.wait(TIMEOUT)

  monkeypatch.setattr(service.engine, '_watch', watch)
  with socket.create_connection(address.removeprefix('http://').split(':')) as sock:
    if reset:
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    # More answers than rows, so that some wait.
    ask_raw(sock, {**BODY, 'n': 6, 'max_tokens': 200, 'stream': stream, 'logit_bias': {'1': -100}})
    assert held.wait(TIMEOUT)
    assert len(steps[-1].spans) == service.engine.running == 4
    asked = service.engine._scheduler.requests()
    assert len(asked) == 6
  wait_for(lambda: all(request.cancelled for request in asked))  # while that step goes on
  going.set()
  wait_for(lambda: service.engine.running + service.engine.waiting == 0)
  assert steps[20].spans == []
  assert [why for _, _, why in steps[20].ended] == ['cancelled'] * 6
  status = 200 if stream else 499  # which no one reads, and no mistake of the server
  wait_for(lambda: [line['status'] for line in lines(audit_folder)[-1:]] == [status])


def ask_raw(sock, body):
  content = json.dumps(body).encode()
  head = f'POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n'
  sock.sendall(f'{head}content-length: {len(content)}\r\n\r\n'.encode() + content)


def wait_for(condition, seconds=TIMEOUT):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.001)


def test_overload_is_shed_with_429_and_those_taken_are_answered(tmp_path):
  service = make_service(Limits(answer_tokens=50))
  service._step_seconds = 3.0
  bodies = [{**BODY, 'max_tokens': 50, 'seed': n} for n in range(40)]

  async def all_at_once(address):
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT) as client:
      return await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))

  with serving(service, tmp_path) as address:
    answers = asyncio.run(all_at_once(address))
  shed = [answer for answer in answers if answer.status_code == 429]
  assert 0 < len(shed) < 40
  assert {answer.status_code for answer in answers} == {200, 429}
  assert all(int(answer.headers['retry-after']) >= 1 for answer in shed)
  assert shed[0].json()['error']['code'] == 'overloaded'


def test_keys_are_needed_and_each_has_its_rate(tmp_path):
  path = tmp_path / 'keys.jsonl'
  key = add_key(path, 'ada')
  assert key.startswith(PREFIX)
  assert key not in path.read_text()
  assert path.stat().st_mode & 0o077 == 0
  with pytest.raises(UserError, match='has a key of ada already'):
    add_key(path, 'ada')
  (stored,) = read_keys(path)
  keys = [stored._replace(requests_per_minute=2, priority=-3), Key('bob', hash_key('b'))]
  service, seen = make_service(), []
  service.engine._watch = lambda step: seen.extend(s.running.request for s in step.spans)
  with serving(service, tmp_path, keys, local=False) as address:
    assert httpx.get(f'{address}/health', timeout=TIMEOUT).status_code == 200
    for path in ('/v1/models', '/metrics'):
      for headers in ({}, {'authorization': 'Bearer wrong'}, {'authorization': f'Basic {key}'}):
        answer = httpx.get(f'{address}{path}', headers=headers, timeout=TIMEOUT)
        assert (answer.status_code, answer.json()['error']['code']) == (401, 'invalid_api_key')
        assert answer.headers['www-authenticate'] == 'Bearer'
    ada, bob = make_client(address, key), make_client(address, 'b')
    statuses = [ask(client) for client in (ada, ada, ada, bob, bob, bob)]
  assert statuses == [200, 200, 429, 200, 200, 200]
  assert {(request.owner, request.priority) for request in seen} == {('ada', -3), ('bob', 0)}
  assert {line['key'] for line in lines(tmp_path) if line['status'] == 200} == {'ada', 'bob'}


def ask(client):
  try:
    client.chat.completions.create(**BODY)
  except openai.APIStatusError as error:
    return error.status_code
  return 200


def test_only_so_many_of_an_owner_run_at_a_time():
  keys = Keys([], Limits(concurrent=1))
  mine, other = Key('a', ''), Key('b', '')
  told = pytest.raises(ApiError, match='a has 1 requests running, as many as it may')
  with keys.running(mine), keys.running(other), told, keys.running(mine):
    pass
  with keys.running(mine):
    pass


@pytest.mark.parametrize(
  ('text', 'told'),
  [
    ('', 'holds no key'),
    ('{"name": "a"}', 'line 1 is no key: write them with'),
    ('[]', 'line 1 is no key'),
    ('{"name": "a", "sha256": "lmjax-abc"}', 'store the hash, not the key'),
    (f'{{"name": "a", "sha256": "{"0" * 64}", "concurrent": 0}}', 'integers of 1 or more'),
    (f'{{"name": "a", "sha256": "{"0" * 64}", "priority": "1"}}', 'priority is an integer'),
  ],
)
def test_a_file_that_is_no_list_of_keys_is_refused(tmp_path, text, told):
  (tmp_path / 'keys').write_text(text)
  with pytest.raises(UserError, match=told):
    read_keys(tmp_path / 'keys')


def refuse_cats(text, side):
  return f'cats in the {side}' if 'cat' in text else None


def test_what_the_moderation_refuses_is_answered_with_a_refusal(tmp_path):
  service = make_service(moderation=refuse_cats)
  cat = TOKENIZER.encode('a cat. and more').tolist()
  spell = {'response_format': {'type': 'regex', 'pattern': 'a dog\\. a cat\\. and more words'}}
  with serving(service, tmp_path) as address:
    client = make_client(address)
    ask = lambda **changes: client.chat.completions.create(**{**BODY, 'max_tokens': 60, **changes})
    asked = ask(messages=[{'role': 'user', 'content': 'a cat?'}])
    said = ask(extra_body=spell)
    streamed = list(ask(extra_body=spell, stream=True))
    with pytest.raises(openai.BadRequestError) as caught:
      client.completions.create(model='tiny', prompt=cat)
    assert caught.value.code == 'content_filter'
    fine = ask(extra_body={'response_format': {'type': 'regex', 'pattern': 'a dog\\. b'}})
    usage = {'stream': True, 'stream_options': {'include_usage': True}}
    *_, last = ask(messages=[{'role': 'user', 'content': 'a cat?'}], **usage)
  assert last.usage is not None
  assert last.usage.total_tokens == 0
  for choice in (asked.choices[0], said.choices[0]):
    assert choice.finish_reason == 'content_filter'
  assert asked.choices[0].message.content == 'I cannot help with that.'
  text = ''.join(chunk.choices[0].delta.content or '' for chunk in streamed)
  assert text == 'a dog. I cannot help with that.'
  assert streamed[-1].choices[0].finish_reason == 'content_filter'
  assert fine.choices[0].message.content == 'a dog. b'
  refused = [line['refused'] for line in lines(tmp_path) if 'refused' in line]
  assert [r[0]['side'] for r in refused] == ['input', 'output', 'output', 'input', 'input']
  assert refused[1][0]['why'] == 'cats in the output'


def test_others_are_answered_while_the_moderation_thinks(tmp_path):
  thinking, told = threading.Event(), threading.Event()

  def moderation(text, side):
    if side == 'output':
      thinking.set()
      assert told.wait(TIMEOUT)

  with serving(make_service(moderation=moderation), tmp_path) as address:
    asked = threading.Thread(target=ask, args=[make_client(address)])
    asked.start()
    try:
      assert thinking.wait(TIMEOUT)
      assert httpx.get(f'{address}/health', timeout=TIMEOUT).status_code == 200
    finally:
      told.set()
      asked.join()


def test_what_is_no_request_goes_through():
  seen = []

  async def app(scope, receive, send):
    seen.append(scope['type'])

  none = {'keys': None, 'metrics': None, 'audit': None, 'body_bytes': 1, 'local': True}
  asyncio.run(Guard(app, **none)({'type': 'lifespan'}, None, None))
  assert seen == ['lifespan']
