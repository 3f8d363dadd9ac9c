"""Copy to learn from: asked for as it is asked for later, faithful, in its style's voice; wrong rows are counted."""

import itertools
import json
import re

import jax
import numpy as np
import pytest
from small_models import random_params

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import parse_brief
from lmjax.ads.copies import Copies, CopyPairs
from lmjax.ads.creative import Copy, Limits, find_problems, vocabulary, voice_of, wordings
from lmjax.ads.generator import goods, make_samples
from lmjax.ads.maker import limits_for
from lmjax.ads.studio import Studio, accept_brief
from lmjax.ads.writer import Plan, answer_of, copy_grammars, copy_messages, copy_schema
from lmjax.core.errors import UserError
from lmjax.core.task import save_config
from lmjax.data import chat
from lmjax.data.conversations import sort_rows
from lmjax.data.tokenizer import train
from lmjax.generate.constrain import Grammars
from lmjax.interop import huggingface
from lmjax.models.transformer import Decoder
from lmjax.train.tune import Base
from lmjax.train.tune_chat import TuneChat

BRIEF = {'product': 'Oat bread', 'facts': ['no added sugar', '750 g'], 'audience': {'style': 'fun'}}
COPY = {'headline': 'Meet Oat bread', 'body': 'No added sugar, 750 g.', 'action': 'See more'}
TEMPLATE = (
  "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
  "{{ '<|end|>' if m['role'] == 'assistant' else '|' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
_WORDS = itertools.chain(*wordings('playful').values())
TOKENIZER = train([*_WORDS, *[json.dumps(BRIEF), json.dumps(COPY, separators=(',', ':'))] * 9], 700)


def write_rows(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def asked_of(values):
  """The brief that a row's messages tell of, as far as copy is checked by it."""
  said = values['prompt'][1]['content']
  style = re.findall(r'^Of style: (.*)$', said, re.M)
  return parse_brief(
    {
      'product': re.findall(r'^Product: (.*)$', said, re.M)[0],
      'facts': re.findall(r'^Fact: (.*)$', said, re.M),
      'audience': {'style': style[0] if style else ''},
    }
  )


def test_of_a_pair_that_was_made_up_the_first_alone_is_faithful_and_in_the_voice():
  rows = CopyPairs(made=60).rows()
  assert rows == CopyPairs(made=60).rows()
  assert rows != CopyPairs(made=60, made_seed=1).rows()
  pairs = [row.values for row in rows if not row.problem]
  assert len(rows) == 60
  assert len(pairs) >= 55
  taught = {product for products in goods().values() for product in list(products)[:-1]}
  kinds = []
  for values in pairs:
    brief = asked_of(values)
    chosen, rejected = (Copy(**json.loads(values[name])) for name in ('chosen', 'rejected'))
    assert brief.product in taught
    assert find_problems(brief, chosen, Limits(60, 140, 22)) == []
    problems = {one.kind for one in find_problems(brief, rejected, Limits(99, 999, 22))}
    assert chosen != rejected
    actions = vocabulary()['voices'].get(voice_of(brief), wordings(''))['actions']
    assert chosen.action in actions
    assert problems or rejected.action not in actions
    kinds.append('repeat' if 'repeat' in problems else 'wrong' if problems else 'voice')
  assert min(kinds.count(kind) for kind in ('repeat', 'wrong', 'voice')) >= 8, kinds


def test_each_style_has_a_voice_with_words_for_every_plan():
  voices = vocabulary()['voices']
  assert set(voices) == set(load_taxonomy().styles)
  slots = lambda texts: {len(re.findall(r'{[Ff]act}', text)) for text in texts}
  for voice in voices.values():
    assert (slots(voice['headlines']), slots(voice['sentences'])) == ({0, 1}, {0, 1, 2})
    assert all(
      len(action) <= 16 for action in voice['actions']
    )  # what the smallest format has room for
  assert voice_of(parse_brief(BRIEF)) == 'playful'
  assert voice_of(parse_brief({'product': 'Oat bread'})) == ''
  assert wordings('')['actions'] == vocabulary()['actions']


def test_a_model_learns_what_it_is_asked_and_what_the_grammar_lets_it_answer(tmp_path):
  source = write_rows(tmp_path / 'rows.jsonl', [{'brief': BRIEF, 'copy': COPY}])
  (row,) = Copies(source=source).rows()
  brief = parse_brief(BRIEF)
  limits = limits_for(brief)
  asked = chat.encode(TEMPLATE, copy_messages(brief, limits), TOKENIZER, answer=True)
  whole = chat.encode_turns(TEMPLATE, row.values['messages'], TOKENIZER)
  np.testing.assert_array_equal(whole.tokens[: len(asked)], asked)
  np.testing.assert_array_equal(whole.weights, np.arange(len(whole.tokens)) >= len(asked))
  plan = Plan((), (brief.facts,))
  grammars = Grammars(TOKENIZER, frozenset([TOKENIZER.end]))
  grammar = grammars.json_schema(copy_schema(brief, limits, plan))
  for token in whole.tokens[len(asked) :].tolist():
    assert grammar.allowed()[token]
    grammar.accept(token)
  assert answer_of(Copy(**COPY)) == TOKENIZER.text(whole.tokens[len(asked) : -1])


def test_whole_copies_can_be_written_within_the_bounds_of_grammars_whatever_a_brief_says():
  grammars = Grammars(TOKENIZER, frozenset([TOKENIZER.end]))
  rng, written = np.random.default_rng(0), 0
  made_up = [accept_brief(sample.brief) for sample in make_samples(3, 0, 'kept')]
  long = ['a' * 30, 'a' * 31, 'b' * 100, '(a{99})*[^x]{0,99}\\d|.*$', '{1,9}"\\n"']
  hostile = [parse_brief({'product': 'aaaaaaaaaa', 'facts': long[:n]}) for n in range(1, 6)]
  two_capitals = parse_brief({'product': 'ß' + 'a' * 59})
  for brief in [*made_up, *hostile, two_capitals]:
    limits = limits_for(brief)
    for grammar in copy_grammars(grammars, brief, limits, 2, 0):
      tokens, ended = [], False
      while not ended:
        tokens.append(int(rng.choice(np.flatnonzero(grammar.allowed()))))
        ended = grammar.accept(tokens[-1])
      copy = json.loads(TOKENIZER.text(np.array(tokens)))
      assert 0 < len(copy['headline']) <= limits.headline
      assert len(copy['body']) <= limits.body
      written += 1
  assert written == 18


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'brief': {}}, 'with a brief that is refused (invalid)'),
    ({'brief': {'product': 'Heroin'}}, 'with a brief that is refused (prohibited_goods)'),
    ({'copy': 'Oat bread'}, 'without brief and copy as they are asked for'),
    ({'copy': {'headline': 'Oat bread'}}, 'without brief and copy as they are asked for'),
    ({'copy': {**COPY, 'body': '800 g.'}}, 'with a copy that has a problem (figure)'),
    ({'copy': {**COPY, 'body': 'Oats. ' * 40}}, 'with a copy that has a problem (length)'),
  ],
)
def test_rows_that_are_not_learnt_from_are_counted(tmp_path, change, told):
  good = {'brief': BRIEF, 'copy': {**COPY, 'body': 'A crusty loaf of 750 g.'}}  # its own wording
  source = write_rows(tmp_path / 'rows.jsonl', [good, {**good, **change}, good])
  found = sort_rows(Copies(source=source).rows(), lambda values: values, 0.5)
  assert found.counts == {'in': 3, 'used': 1, 'held_out': 1, 'dropped': {told: 1}}
  with pytest.raises(UserError, match='0 of the rows can be used'):
    sort_rows(CopyPairs(source=source).rows(), lambda values: values, 0.5)


def test_a_source_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match='there is no such file: pass a JSONL file'):
    Copies(source=str(tmp_path / 'none.jsonl')).rows()


@pytest.mark.slow
def test_the_studio_writes_with_a_run_that_was_tuned(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'cache'))
  sizes = {'width': 32, 'layers': 2, 'heads': 2, 'kv_heads': 2, 'head_dim': 16, 'mlp': 64}
  model = Decoder(**sizes).with_vocab(TOKENIZER.vocab)
  params = jax.tree.map(lambda x: 0.3 * x, random_params(model))
  chat_model = {'chat_template': TEMPLATE, 'ends': (TOKENIZER.end,), 'length': 1024}
  huggingface.save(tmp_path / 'model', model, params, TOKENIZER, dtype='float32', **chat_model)
  source = write_rows(tmp_path / 'rows.jsonl', [{'brief': BRIEF, 'copy': COPY}] * 4)
  task = TuneChat(
    base=Base(checkpoint=str(tmp_path / 'model')), source=Copies(source=source, held_out=0.25),
    steps=2, batch=1, length=768,
  )  # fmt: skip
  run = tmp_path / 'run'
  run.mkdir()
  save_config(task, 'ads_copy_sft', run)
  assert task.run(run)['rows'] == {'in': 4, 'used': 3, 'held_out': 1, 'dropped': {}}
  (tmp_path / 'brief.json').write_text(json.dumps({**BRIEF, 'formats': ['300x250']}))
  output = tmp_path / 'out'
  studio = Studio(
    brief=str(tmp_path / 'brief.json'),
    output=str(output),
    checkpoint=str(run),
    candidates=2,
    templates=1,
  )
  made = studio.run(tmp_path)['creatives']
  assert [one['made_by'] for one in made] == [str(run), str(run), 'template']
  assert all(one['facts'] == 1.0 for one in made[:2])
