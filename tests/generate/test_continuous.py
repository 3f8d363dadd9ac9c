"""Sequences that share steps are each what they are alone, whoever comes, goes or is guessed ahead."""

import dataclasses
import queue

import jax
import numpy as np
import pytest
from small_models import QUICK, random_params
from test_engine import DRAW, END, GREEDY, MAX_TOKENS, MODELS, SEED, VOCAB, make_prompts
from test_engine import generate as generate_alone

from lmjax.core.errors import UserError
from lmjax.generate import engine as generation
from lmjax.generate import sampler as sampling
from lmjax.generate.continuous import Batching, Engine
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler, row_keys
from lmjax.generate.scheduler import Request
from lmjax.generate.settings import Settings, draws_of
from lmjax.parallel import sharding
from lmjax.parallel.mesh import Mesh

SIZES = Batching(rows=3, context=64, chunk=8, queue=20, lookup=2)


class Listener:
  """What a request was told."""

  def __init__(self, most=1000):
    self.drawn, self.ended, self._most = [], None, most

  def token(self, drawn):
    self.drawn.append(drawn)
    return len(self.drawn) >= self._most

  def end(self, reason, usage):
    self.ended = reason, usage

  @property
  def tokens(self):
    return [drawn.token for drawn in self.drawn]


def make_engine(model, params=None, batching=SIZES, **more):
  params = random_params(model) if params is None else params
  return Engine(model, params, vocab=VOCAB, batching=batching, slots=96, **more)


def make_request(prompt, settings=None, max_tokens=MAX_TOKENS, **more):
  settings = Settings(sampler=DRAW, seed=SEED) if settings is None else settings
  return Request(prompt.tolist(), max_tokens, settings, Listener(), ends=frozenset([END]), **more)


def finish(engine, requests, every=1):
  """Submits one request every so many steps; what each was told."""
  waiting = list(requests)
  for number in range(5000):
    if waiting and number % every == 0:
      engine.submit(waiting.pop(0))
    if not engine.step() and not waiting:
      return [request.listener for request in requests]
  raise AssertionError('not done')


@pytest.fixture(scope='module')
def model():
  return MODELS['scan']


@pytest.fixture(scope='module')
def prepared():
  """A model on the kernels, where there are any."""
  return prepare(MODELS['list'], random_params(MODELS['list']))


slow = lambda kind: pytest.param(kind, marks=pytest.mark.slow)


@pytest.mark.parametrize('kind', ['prepared', slow('scan'), slow('list'), slow('moe')])
def test_each_sequence_is_what_it_is_alone(kind, prepared):
  model, params = prepared if kind == 'prepared' else (MODELS[kind], None)
  prompts = make_prompts((5, 33, 12, 1, 20))
  engine = make_engine(model, params)
  for sampler in (DRAW, GREEDY):
    found = finish(
      engine, [make_request(p, Settings(sampler=sampler, seed=SEED)) for p in prompts], every=2
    )
    alone = [generate_alone(model, [prompt], sampler, params)[0] for prompt in prompts]
    assert [listener.tokens for listener in found] == alone
    for listener, prompt in zip(found, prompts, strict=True):
      reason, usage = listener.ended
      assert reason == ('length' if len(listener.drawn) == MAX_TOKENS else 'stop')
      assert usage.prompt == len(prompt)


def test_choices_of_one_prompt_are_the_rows_of_generate(model):
  prompt = make_prompts((9,))[0]
  requests = [make_request(prompt, Settings(sampler=DRAW, seed=SEED, choice=n)) for n in range(3)]
  found = finish(make_engine(model), requests)
  assert [listener.tokens for listener in found] == generate_alone(model, [prompt] * 3)


def test_guesses_and_kept_beginnings_change_nothing(model):
  prompt = np.tile(make_prompts((6,))[0], 12)[:70]
  settings = Settings(sampler=GREEDY)
  plain = make_engine(model, batching=dataclasses.replace(SIZES, lookup=0))
  (expected,) = finish(plain, [make_request(prompt, settings, 20)])
  engine = make_engine(model)
  first, second = finish(engine, [make_request(prompt, settings, 20) for _ in range(2)], every=30)
  assert first.tokens == second.tokens == expected.tokens
  assert engine.counts.guessed_right > 0
  assert engine.counts.reused_tokens == second.ended[1].reused == 64
  assert engine.counts.prompt_tokens == 70 + 6
  assert engine.counts.steps < plain.counts.steps + 20


@pytest.mark.parametrize('kind', ['scan', 'prepared'])
def test_keys_and_values_in_int8_are_close_and_take_less(kind, prepared):
  model, params = prepared if kind == 'prepared' else (MODELS[kind], None)
  prompts = make_prompts((5, 33, 12, 40, 20, 28, 8, 16))
  settings = Settings(sampler=GREEDY, alternatives=VOCAB)
  engines = [make_engine(model, params, int8_cache=int8) for int8 in (False, True)]
  exact, rounded = (finish(e, [make_request(p, settings) for p in prompts]) for e in engines)
  errors, same, count = [], 0, 0
  for a, b in zip(exact, rounded, strict=True):
    count += len(a.tokens)
    for one, other in zip(a.drawn, b.drawn, strict=False):
      likely, also = dict(one.alternatives), dict(other.alternatives)
      errors.append(max(abs(likely[token] - also[token]) for token in likely))
      if one.token != other.token:
        break
      same += 1
  assert 0 < max(errors) < 0.1
  assert same >= 0.9 * count
  assert engines[1].cache_bytes <= 0.5 * engines[0].cache_bytes


def test_a_request_cancelled_leaves_within_a_step_and_another_takes_its_row(model):
  steps = []
  engine = make_engine(model, batching=dataclasses.replace(SIZES, rows=1), watch=steps.append)
  gone, next_one = make_request(make_prompts((4,))[0]), make_request(make_prompts((5,))[0])
  engine.submit(gone)
  engine.submit(next_one)
  engine.step()
  engine.cancel(gone)
  engine.step()
  assert gone.listener.ended[0] == 'cancelled'
  assert [span.running.request for span in steps[1].spans] == [next_one]


def test_the_thread_answers_and_ends_when_told(model):
  engine, done = make_engine(model), queue.SimpleQueue()
  engine.start()
  request = make_request(make_prompts((7,))[0])
  request.listener.end = lambda *told: done.put(told)
  engine.submit(request)
  reason, usage = done.get(timeout=300)
  assert (reason, usage.added) == ('length', MAX_TOKENS) or reason == 'stop'
  endless = make_request(make_prompts((7,))[0], max_tokens=80)
  endless.listener.end = lambda *told: done.put(told)
  engine.submit(endless)
  engine.stop()
  assert done.get(timeout=300)[0] in ('cancelled', 'stop', 'length')
  with pytest.raises(RuntimeError, match='the engine has ended'):
    engine.submit(request)


def test_what_goes_wrong_in_a_step_is_told_to_all(model, caplog):
  engine, done = make_engine(model), queue.SimpleQueue()
  engine._params = {}  # as if memory were lost
  requests = [make_request(prompt) for prompt in make_prompts()]
  for request in requests:
    request.listener.end = lambda reason, _: done.put(reason)
    engine.submit(request)
  engine.start()
  engine.wait()
  assert [done.get(timeout=300) for _ in requests] == ['error'] * 3
  assert engine.failure is not None
  assert 'the engine has ended' in caplog.text


def test_log_probabilities_are_those_of_the_model(model):
  prompt, biased = make_prompts((5,))[0], {3: 100.0}
  settings = Settings(sampler=GREEDY, alternatives=4, bias=biased)
  (found,) = finish(make_engine(model), [make_request(prompt, settings, 3)])
  assert found.tokens == [3, 3, 3]
  tokens, params = [*prompt, 3, 3], random_params(model)
  row = np.array([tokens], np.int32)
  output = jax.jit(model.apply)(params, row, np.ones_like(row), np.arange(len(tokens))[None])
  logits = model.logits(params, output.hidden_BLD)[0, -3:, :VOCAB]
  expected = np.asarray(jax.nn.log_softmax(logits))
  for drawn, logprobs in zip(found.drawn, expected, strict=True):
    np.testing.assert_allclose(drawn.logprob, logprobs[3], atol=1e-4)
    order = np.argsort(-logprobs)[:4]
    assert [token for token, _ in drawn.alternatives] == order.tolist()
    np.testing.assert_allclose([p for _, p in drawn.alternatives], logprobs[order], atol=1e-4)


@pytest.mark.parametrize(
  'settings', [{'frequency': 50.0}, {'presence': 50.0}, {'repetition': 1e6}], ids=str
)
def test_penalties_keep_tokens_from_coming_again(model, settings):
  request = make_request(make_prompts((2,))[0], Settings(sampler=GREEDY, **settings), 8)
  request.ends = frozenset()
  (found,) = finish(make_engine(model), [request])
  assert len(found.tokens) == 8
  assert len(set(found.tokens)) == len(found.tokens)


class Alternate:
  """Tokens 1 and 2 in turn, four of them."""

  def __init__(self):
    self._taken = 0

  def allowed(self):
    return np.arange(VOCAB) == 1 + self._taken % 2

  def accept(self, token):
    self._taken += 1
    return self._taken == 4


def test_a_constraint_is_kept_and_ends_its_sequence(model):
  constrained = make_request(make_prompts((5,))[0], Settings(sampler=DRAW, constraint=Alternate()))
  free = make_request(make_prompts((9,))[0])
  found = finish(make_engine(model), [constrained, free])
  assert found[0].tokens == [1, 2, 1, 2]
  assert found[0].ended[0] == 'stop'
  assert found[1].tokens == generate_alone(model, [make_prompts((9,))[0]])[0]


def test_what_goes_wrong_with_one_request_is_told_to_it_alone(model, caplog):
  class Broken(Alternate):
    def accept(self, token):
      raise ValueError('lost its place')

  broken = make_request(make_prompts((5,))[0], Settings(sampler=DRAW, constraint=Broken()))
  fine = make_request(make_prompts((9,))[0])
  found = finish(make_engine(model), [broken, fine])
  assert found[0].ended[0] == 'error'
  assert found[1].tokens == generate_alone(model, [make_prompts((9,))[0]])[0]
  assert 'lost its place' in caplog.text


class Unkept(Alternate):
  def __init__(self, error):
    super().__init__()
    self._error = error

  def allowed(self):
    raise self._error


def test_settings_and_constraints_that_give_no_draw_end_their_request_alone(model, caplog):
  wrong = [
    Settings(sampler=DRAW, constraint=Unkept(UserError('too complex'))),
    Settings(sampler=DRAW, constraint=Unkept(KeyError('lost'))),
    Settings(sampler=DRAW, seed=2**40),
  ]
  prompts = make_prompts((5, 7, 9))
  requests = [
    make_request(p, s, name=f'req-{n}') for n, (p, s) in enumerate(zip(prompts, wrong, strict=True))
  ]
  fine = make_request(make_prompts((9,))[0])
  *broken, found = finish(make_engine(model), [*requests, fine])
  assert [listener.ended[0] for listener in broken] == ['constraint', 'error', 'error']
  assert [listener.tokens for listener in broken] == [[], [], []]
  assert found.tokens == generate_alone(model, [make_prompts((9,))[0]])[0]
  for told in ('req-0: too complex', 'req-1 has failed', 'req-2 has failed'):
    assert told in caplog.text


def test_a_listener_that_fails_at_its_end_stops_nobody_else(model, caplog):
  deaf, late = (
    make_request(make_prompts((5,))[0], name='req-5'),
    make_request(make_prompts((5,))[0]),
  )
  deaf.listener.end = late.listener.end = lambda *told: 1 / 0
  late.deadline = 0.0
  fine = make_request(make_prompts((9,))[0])
  found = finish(make_engine(model), [late, deaf, fine])
  assert found[2].tokens == generate_alone(model, [make_prompts((9,))[0]])[0]
  assert 'req-5 has failed' in caplog.text


def test_each_row_is_drawn_by_its_own_settings():
  logits = np.random.default_rng(0).normal(size=(6, VOCAB), scale=2.0).astype(np.float32)
  samplers = [
    Sampler(temperature=0.0),
    Sampler(temperature=1.3),
    Sampler(temperature=0.7, top_k=3),
    Sampler(temperature=0.9, top_p=0.6),
    Sampler(temperature=1.0, min_p=0.2),
    Sampler(temperature=2.0, top_k=9, top_p=0.8, min_p=0.01),
  ]
  rows = jax.jit(sampling.draw, compiler_options=QUICK)
  each = [
    jax.jit(
      lambda x, s=s, i=i, p=p: s(x, row_keys(jax.random.key(7), np.array([i]), np.array([p]))),
      compiler_options=QUICK,
    )
    for p in (3,)
    for i, s in enumerate(samplers)
  ]
  settings = [(Settings(sampler=s, seed=7, choice=i), 3) for i, s in enumerate(samplers)]
  found = np.asarray(rows(logits, draws_of(settings)))
  assert found.tolist() == [int(f(logits[i : i + 1])[0]) for i, f in enumerate(each)]


@pytest.mark.slow
def test_a_hundred_sequences_of_a_hundred_tokens_are_what_they_are_alone(prepared):
  model, params = prepared
  rng = np.random.default_rng(2)
  prompts = make_prompts(rng.integers(1, 32, 100).tolist())
  batching = dataclasses.replace(SIZES, rows=8, chunk=32, queue=100, lookup=4)
  engine = Engine(model, params, vocab=VOCAB, batching=batching, slots=160)
  settings = Settings(sampler=GREEDY, alternatives=2)
  requests = [make_request(prompt, settings, 100) for prompt in prompts]
  for request in requests:
    request.ends = frozenset()
  found = finish(engine, requests, every=3)
  same = 0
  for listener, prompt in zip(found, prompts, strict=True):
    how = {'sampler': GREEDY, 'max_tokens': 100, 'end': -1, 'vocab': VOCAB, 'seed': 0}
    padded = [prompt, np.zeros(32, np.int32)]  # so that one shape is compiled
    alone = generation.generate(model, params, padded, **how)[0].tolist()
    differs = next((i for i, (a, b) in enumerate(zip(listener.tokens, alone)) if a != b), None)
    same += differs is None
    if differs is not None:
      (_, first), (_, second) = listener.drawn[differs].alternatives
      assert first - second <= 1e-3
  assert same >= 99


@pytest.mark.slow
def test_split_over_eight_devices_the_tokens_are_the_same():
  model = dataclasses.replace(MODELS['scan'], heads=8, kv_heads=8, vocab=24)
  params, prompts = random_params(model), make_prompts((5, 20))
  one = finish(make_engine(model, params), [make_request(prompt) for prompt in prompts])
  mesh = Mesh(tensor=8).build()
  split = jax.device_put(params, sharding.shardings(mesh, model.dims()))
  engine = make_engine(model, split, mesh=mesh)
  with jax.set_mesh(mesh):
    found = finish(engine, [make_request(prompt) for prompt in prompts])
  assert [listener.tokens for listener in found] == [listener.tokens for listener in one]
  kept = jax.tree.leaves(engine._cache)[0]
  assert kept.sharding.shard_shape(kept.shape)[3] == 1
