"""Calls are read back from what models say, and tools are offered only to models that are told of them."""

import json

import pytest
from small_server import TEMPLATE, make_service

from lmjax.serve.chat import _Chat
from lmjax.serve.errors import ApiError
from lmjax.serve.schemas import ChatRequest
from lmjax.serve.tools import read_calls

LOOK = {'name': 'look', 'arguments': {'at': 'a'}}


@pytest.mark.parametrize(
  ('text', 'said', 'calls'),
  [
    (f'<tool_call>{json.dumps(LOOK)}</tool_call>', None, [LOOK]),
    (f'Well.\n<tool_call>\n{json.dumps(LOOK)}\n</tool_call>', 'Well.', [LOOK]),
    (f'<tool_call>[{json.dumps(LOOK)}, {json.dumps(LOOK)}]</tool_call>', None, [LOOK, LOOK]),
    (f'<tool_call>{json.dumps(LOOK)}', None, [LOOK]),
    (json.dumps({'name': 'look', 'parameters': {'at': 'a'}}), None, [LOOK]),
    ('plain words', 'plain words', []),
    ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
    ('{"name": "look", "arguments": "x"}', '{"name": "look", "arguments": "x"}', []),
    ('[' * 5000, '[' * 5000, []),
    ('42', '42', []),
  ],
)
def test_calls_are_read_in_the_ways_that_models_say_them(text, said, calls):
  found_said, found = read_calls(text, ['look'])
  functions = [call['function'] for call in found]
  assert found_said == said
  assert [{**f, 'arguments': json.loads(f['arguments'])} for f in functions] == calls
  assert len({call['id'] for call in found}) == len(found)


@pytest.mark.parametrize(
  ('template', 'told'),
  [
    (TEMPLATE.replace('{% if tools %}', '{% if false %}'), 'does not tell it of tools'),
    (None, 'tiny has no chat template: use /v1/completions'),
  ],
)
def test_a_model_that_cannot_is_said_to(template, told):
  tool = {'type': 'function', 'function': {'name': 'look'}}
  body = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'a'}], 'tools': [tool]}
  chat = _Chat(make_service(template=template), ChatRequest(**body))
  with pytest.raises(ApiError, match=told):
    chat.prepare()


@pytest.mark.parametrize(('parallel', 'count'), [(None, 2), (True, 2), (False, 1)])
def test_who_takes_one_call_at_a_time_gets_one(parallel, count):
  tool = {'type': 'function', 'function': {'name': 'look'}}
  body = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'a'}], 'tools': [tool]}
  chat = _Chat(make_service(), ChatRequest(**body, parallel_tool_calls=parallel))
  text = f'<tool_call>[{json.dumps(LOOK)}, {json.dumps(LOOK)}]</tool_call>'
  assert len(chat.choice(0, text, 'stop', [])['message']['tool_calls']) == count
