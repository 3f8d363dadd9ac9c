"""lm-eval over a tiny model of ours against scores of whole texts; needs the extra [eval]."""

import evaluated
import numpy as np
import pytest

pytest.importorskip('lm_eval', reason='asks through lm-eval: pip install "lmjax[eval]"')

from lm_eval.api.instance import Instance

from lmjax.data.questions import Question
from lmjax.generate.score import score
from lmjax.interop.load import load
from lmjax.train import harness

pytestmark = pytest.mark.filterwarnings('default')


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  return load(evaluated.write_folder(tmp_path_factory.mktemp('model') / 'tiny'))


@pytest.fixture
def adapter(loaded):
  return harness.Adapter(loaded, lambda *progress: None)


def request(kind, *arguments):
  return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def whole(loaded, text):
  return score(loaded.model, loaded.params, [evaluated.tokens_of(loaded.tokenizer, text)])[0]


def test_continuations_are_what_is_left_of_the_whole(loaded, adapter):
  asked = [('a text', ' goes on'), ('a text', ' ends'), ('', 'a text')]
  found = adapter.loglikelihood([request('loglikelihood', *pair) for pair in asked])
  before = np.array(loaded.tokenizer.before, np.int32)
  for (context, continuation), (logprob, _) in zip(asked, found, strict=True):
    if context:
      tokens = [
        np.concatenate([before, loaded.tokenizer.encode(t)]).astype(np.int32)
        for t in (context + continuation, context)
      ]
      both = score(loaded.model, loaded.params, tokens)
      np.testing.assert_allclose(logprob, both[0] - both[1], rtol=1e-4)
    else:
      np.testing.assert_allclose(logprob, whole(loaded, continuation), rtol=1e-4)


def test_rolling_reads_each_text_after_the_start_token_in_windows(loaded, adapter):
  short, long = 'a text', 'one more text ' * 30
  found = adapter.loglikelihood_rolling(
    [request('loglikelihood_rolling', t) for t in (short, long)]
  )
  np.testing.assert_allclose(found[0], whole(loaded, short), rtol=1e-4)
  assert np.isfinite(found[1])
  assert found[1] < found[0]


def test_generation_ends_before_what_it_is_asked_to(adapter):
  free = {'until': [], 'max_gen_toks': 12}
  one, other = adapter.generate_until(
    [request('generate_until', 'a text', free), request('generate_until', 'another one', free)]
  )
  assert one
  stopped = adapter.generate_until(
    [request('generate_until', 'a text', free | {'until': [one[2:4]]})]
  )[0]
  assert stopped == one.partition(one[2:4])[0]
  assert other == adapter.generate_until([request('generate_until', 'another one', free)])[0]


@pytest.mark.parametrize('name', ['boolq', 'openbookqa', 'siqa', 'commonsenseqa'])
def test_a_task_counts_the_likeliest_choice(loaded, adapter, name):
  choices = ['no', 'yes'] if name == 'boolq' else ['one', 'quite another', 'a third']
  questions = [
    Question(number, f'passage {number}', f'question {number}', choices, gold)
    for number, gold in ((7, 0), (3, 1), (5, 0))
  ]
  found = harness.ask(adapter, name, questions)
  assert found.ids == [7, 3, 5]
  task = harness.make_task(name, questions)
  right = []
  for question in questions:
    text = task.doc_to_text(question._asdict())
    asked = [request('loglikelihood', text, f' {choice}') for choice in choices]
    logprobs = [logprob for logprob, _ in adapter.loglikelihood(asked)]
    right.append(float(int(np.argmax(logprobs)) == question.gold))
  assert found.metrics['acc'].tolist() == right
