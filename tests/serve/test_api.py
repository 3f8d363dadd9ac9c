"""The API is OpenAI's, by OpenAI's client."""

import base64
import json
import re

import jax
import jsonschema
import numpy as np
import openai
import pytest
from small_server import TOKENIZER, make_client

from lmjax.generate.sampler import Sampler
from lmjax.serve.generation import read_sampler
from lmjax.serve.schemas import Generation

HELLO = [{'role': 'user', 'content': 'hello'}]
SAME = {'model': 'tiny', 'max_tokens': 12, 'seed': 5}


def ask(client, **changes):
  return client.chat.completions.create(**{'messages': HELLO, **SAME, **changes})


def test_a_stream_says_what_the_whole_answer_does(client):
  whole = ask(client, n=2)
  chunks = list(ask(client, n=2, stream=True, stream_options={'include_usage': True}))
  for choice in whole.choices:
    mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
    assert ''.join(c.delta.content or '' for c in mine) == choice.message.content
    assert mine[0].delta.role == 'assistant'
    assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
  assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 24
  said = [TOKENIZER.encode(text) for text in ('user\nhello', 'assistant\n')]
  assert whole.usage.prompt_tokens == sum(map(len, said)) + 3  # once, and its control tokens
  assert whole.choices[0].message.content != whole.choices[1].message.content


def test_the_same_seed_gives_the_same_answer(client):
  first, second, other = (ask(client, seed=s).choices[0].message.content for s in (5, 5, 6))
  assert first == second != other


def test_a_top_k_of_more_tokens_than_there_are_keeps_all(client):
  draws = [ask(client, seed=5, extra_body=body) for body in ({}, {'top_k': 10**12})]
  assert draws[0].choices == draws[1].choices


@pytest.mark.parametrize('body', [{'top_k': 0}, {'top_k': -1}, {'min_p': 0}, {'top_p': 1}], ids=str)
def test_a_filter_may_be_turned_off(body):
  default = Sampler(top_k=3, top_p=0.5, min_p=0.1)
  (name,) = body
  assert getattr(read_sampler(Generation(model='tiny', **body), default), name) in (None, 1)
  assert read_sampler(Generation(model='tiny'), default) == default


def test_completions_continue_texts_and_token_ids(client):
  same = {**SAME, 'temperature': 0}
  texts = client.completions.create(prompt=['a look', 'user'], echo=True, **same)
  assert [choice.text[:4] for choice in texts.choices] == ['a lo', 'user']
  ids = [TOKENIZER.encode(text).tolist() for text in ('a look', 'user')]
  by_ids = client.completions.create(prompt=ids, echo=True, **same)
  assert [c.text for c in by_ids.choices] == [c.text for c in texts.choices]
  streamed = client.completions.create(prompt='user', stream=True, **same)
  assert 'user' + ''.join(c.choices[0].text for c in streamed) == texts.choices[1].text


def test_log_probabilities_come_with_every_token(client):
  choice = ask(client, logprobs=True, top_logprobs=3, temperature=0).choices[0]
  content = choice.logprobs.content
  assert 0 < len(content) <= 12
  for token in content:
    assert token.top_logprobs[0].token == token.token
    assert token.logprob == token.top_logprobs[0].logprob <= 0
    assert len(token.top_logprobs) == 3
  said = b''.join(bytes(token.bytes) for token in content).decode('utf-8', 'replace')
  assert said == choice.message.content
  found = client.completions.create(prompt='user', logprobs=2, **SAME).choices[0]
  assert len(found.logprobs.tokens) == len(found.logprobs.text_offset) > 0
  assert found.logprobs.text_offset[0] == 0


def test_a_stop_string_ends_an_answer_before_it(client):
  whole = ask(client, temperature=0).choices[0].message.content
  stop = whole[3:5]
  choice = ask(client, temperature=0, stop=[stop]).choices[0]
  assert choice.message.content == whole[: whole.index(stop)]
  assert choice.finish_reason == 'stop'


def test_answers_match_a_schema_an_object_or_a_pattern(client):
  schema = {'type': 'object', 'properties': {'n': {'enum': [1, 2]}}, 'required': ['n']}
  schema['additionalProperties'] = False
  form = {'type': 'json_schema', 'json_schema': {'name': 'n', 'schema': schema, 'strict': True}}
  choice = ask(client, max_tokens=60, response_format=form).choices[0]
  jsonschema.validate(json.loads(choice.message.content), schema)
  assert choice.finish_reason == 'stop'
  form = {'type': 'regex', 'pattern': '(yes|no){2}'}
  for choice in ask(client, n=3, response_format=form).choices:
    assert re.fullmatch('(yes|no){2}', choice.message.content)


def test_a_tool_that_is_chosen_is_called(client):
  parameters = {'type': 'object', 'properties': {'at': {'enum': ['a', 'b']}}, 'required': ['at']}
  parameters['additionalProperties'] = False
  tool = {'type': 'function', 'function': {'name': 'look', 'parameters': parameters}}
  same = {'tools': [tool], 'tool_choice': 'required', 'max_tokens': 80}
  choice = ask(client, **same).choices[0]
  (call,) = choice.message.tool_calls
  assert choice.finish_reason == 'tool_calls'
  jsonschema.validate(json.loads(call.function.arguments), parameters)
  chunks = [c for chunk in ask(client, stream=True, **same) for c in chunk.choices]
  (streamed,) = [c.delta.tool_calls[0] for c in chunks if c.delta.tool_calls]
  assert streamed.function.arguments == call.function.arguments
  again = [
    *HELLO,
    {'role': 'assistant', 'content': None, 'tool_calls': [call.model_dump()]},
    {'role': 'tool', 'tool_call_id': call.id, 'content': 'nothing there'},
  ]
  assert ask(client, messages=again, tools=[tool]).usage.prompt_tokens > 60


@pytest.mark.parametrize('stream', [False, True], ids=['whole', 'streamed'])
def test_a_pattern_that_proves_too_much_work_is_told_and_the_rest_goes_on(client, stream):
  form = {'type': 'regex', 'pattern': 'b?c(a{1000}){1000}'}
  with pytest.raises(openai.APIError, match='too complex: make it simpler') as caught:
    list(ask(client, stream=stream, extra_body={'response_format': form}))
  assert caught.value.code == 'invalid_value'
  assert ask(client).choices


def test_a_prompt_that_was_read_before_is_not_read_again(client):
  long = [{'role': 'user', 'content': 'look at it ' * 20}]
  first = ask(client, messages=long, max_tokens=1).usage
  second = ask(client, messages=long, max_tokens=1).usage
  assert first.prompt_tokens_details.cached_tokens < 32
  assert second.prompt_tokens_details.cached_tokens == first.prompt_tokens // 32 * 32


def test_what_an_answer_was_can_be_sent_back_as_the_client_has_it(client):
  said = ask(client).choices[0].message.model_dump()
  assert ask(client, messages=[*HELLO, said, *HELLO]).choices


def test_embeddings_are_of_length_one_and_the_same_in_a_batch(client, service):
  texts = ['look', 'a longer text than that', TOKENIZER.encode('look').tolist()]
  alone = [client.embeddings.create(model='tiny', input=t).data[0].embedding for t in texts]
  both = client.embeddings.create(model='tiny', input=texts[:2], encoding_format='float')
  np.testing.assert_allclose([e.embedding for e in both.data], alone[:2], atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
  assert alone[0] == alone[2]
  ids = np.array([TOKENIZER.encode(texts[1])])
  places = np.arange(ids.shape[1])[None]
  hidden = jax.jit(service.model.apply)(service.params, ids, np.ones_like(ids), places).hidden_BLD
  mean = np.asarray(hidden)[0].mean(axis=0)
  np.testing.assert_allclose(alone[1], mean / np.linalg.norm(mean), atol=1e-5)
  encoded = client.embeddings.with_raw_response.create(
    model='tiny', input='look', encoding_format='base64'
  )
  raw = json.loads(encoded.text)['data'][0]['embedding']
  np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), '<f4'), alone[0], atol=1e-7)


def test_models_are_listed(client):
  assert [model.id for model in client.models.list()] == ['tiny']
  assert client.models.retrieve('tiny').context_length == 256
  with pytest.raises(openai.NotFoundError, match="no model 'a/tiny'"):
    client.models.retrieve('a/tiny')


REFUSED = {
  'another model': ({'model': 'tinny'}, 404, 'model_not_found', r"no model 'tinny': did you mean"),
  'too long': (
    {'messages': [{'role': 'user', 'content': 'a' * 300}]},
    400,
    'context_length_exceeded',
    r'the prompt has 3\d\d tokens and 12 tokens to answer, and 256 fit in all: shorten it by',
  ),
  'too much': (
    {'max_tokens': 201},
    400,
    None,
    'max_tokens=201 is more than the 200 that an answer',
  ),
  'temperature': (
    {'temperature': 3},
    400,
    'invalid_value',
    'temperature: .*less than or equal to 2',
  ),
  'no such': ({'extra_body': {'tempo': 1}}, 400, 'unknown_parameter', 'tempo: no such parameter'),
  'role': ({'messages': [{'role': 'me', 'content': 'a'}]}, 400, 'invalid_value', 'messages.0.role'),
  'image': (
    {'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]},
    400,
    'invalid_value',
    '^messages.0.content: ',
  ),
  'none': ({'messages': []}, 400, 'invalid_value', 'messages: '),
  'bias': ({'logit_bias': {'999': 1}}, 400, None, "'999' is no token: they go from 0 to "),
  'long bias': (
    {'logit_bias': {'0' * 12 + '999': 1}},
    400,
    None,
    ' is no token: they go from 0 to ',
  ),
  'top_p': ({'top_p': 0}, 400, 'invalid_value', 'top_p: input should be greater than 0'),
  'first': ({'extra_body': {'priority': -1}}, 400, 'invalid_value', 'priority: .* equal to 0'),
  'unstreamed': ({'stream_options': {'include_usage': True}}, 400, None, 'send stream=true'),
  'schema': (
    {'response_format': {'type': 'regex', 'pattern': '('}},
    400,
    'invalid_value',
    'the schema or pattern is not understood',
  ),
  'many': ({'n': 13}, 400, None, '13 answers at once, and 8 fit: ask for fewer'),
  'tool': ({'tool_choice': 'required'}, 400, None, 'tool_choice names no tool'),
  'logprobs': ({'top_logprobs': 1}, 400, None, 'top_logprobs needs logprobs'),
}


@pytest.mark.parametrize('case', REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_told_in_openais_shape(client, case):
  changes, status, code, told = case
  if changes.get('response_format', {}).get('type') == 'regex':
    changes = {'extra_body': changes}
  with pytest.raises(openai.APIStatusError) as caught:
    ask(client, **changes)
  assert caught.value.status_code == status
  assert caught.value.code == code
  assert re.search(told, caught.value.body['message'])
  assert set(caught.value.body) == {'message', 'type', 'param', 'code'}


def test_an_answer_not_done_by_its_deadline_is_given_up(client):
  late = {'extra_body': {'timeout_seconds': 1e-6}}
  with pytest.raises(openai.APIStatusError, match='not done before its deadline') as caught:
    ask(client, **late)
  assert caught.value.status_code == 408
  with pytest.raises(openai.APIError, match='not done before its deadline'):
    list(ask(client, stream=True, **late))


def test_control_tokens_in_a_message_stay_text(client):
  usage = ask(client, messages=[{'role': 'user', 'content': '<|end|>'}]).usage
  assert (
    usage.prompt_tokens
    > ask(client, messages=[{'role': 'user', 'content': 'a'}]).usage.prompt_tokens
  )


def test_a_prompt_is_not_echoed_with_log_probabilities_that_it_has_not(client):
  with pytest.raises(openai.BadRequestError, match='echo has no logprobs'):
    client.completions.create(prompt='a', echo=True, logprobs=1, **SAME)


def test_another_address_than_the_clients_needs_no_key(address):
  assert make_client(address, 'whatever').models.list().data
