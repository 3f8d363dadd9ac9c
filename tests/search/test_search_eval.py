"""search_eval and search_tune as a user starts them, on a tiny encoder of random weights."""

import gzip
import json
import re

import numpy as np
import pytest
from small_encoder import WORDS, write_encoder, write_jsonl

from lmjax.core import command_line
from lmjax.core.errors import UserError
from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.engine import CROSSED, Engine
from lmjax.search.evaluate import Tuned, save_tuned
from lmjax.search.ranking import load_ranking
from lmjax.search.sets import MEASURES, read_documents, read_queries
from lmjax.search.teacher import open_teacher
from lmjax.search.tune_encoder import EncoderTuning, improve_encoder

ANIMALS, VERBS = WORDS[:4], WORDS[4:8]
DOCUMENTS = [
  {'id': f'{animal}-{verb}', 'text': f'{animal} {verb} all day', 'title': f'Big {animal}'}
  for animal in ANIMALS
  for verb in VERBS
]
QUERIES = [
  {'id': str(number), 'text': f'{one["id"].replace("-", " ")} at night', 'relevant': [one['id']]}
  for number, one in enumerate(DOCUMENTS * 2)
]


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  return write_encoder(tmp_path_factory.mktemp('encoder') / 'bert')


@pytest.fixture
def files(tmp_path):
  documents = write_jsonl(tmp_path / 'documents.jsonl', DOCUMENTS)
  return documents, write_jsonl(tmp_path / 'queries.jsonl', QUERIES)


def run(experiment, workdir, files, encoder, *flags):
  flags = [f'--documents={files[0]}', f'--queries={files[1]}', f'--encoder={encoder}', *flags]
  command = command_line.parse(['lmjax', f'--experiment={experiment}', *flags])
  assert isinstance(command, command_line.Command)
  workdir.mkdir(exist_ok=True)
  return command.task.run(workdir)


def test_words_find_what_shares_them_and_every_measure_is_reported(tmp_path, files, encoder):
  report = run('search_eval', tmp_path / 'run', files, encoder)
  assert list(report['methods']) == ['bm25', 'dense', 'hybrid', 'reranked']
  for means in report['methods'].values():
    assert list(means) == list(MEASURES)
    assert all(0 <= mean <= 1 for mean in means.values())
  assert report['methods']['bm25'] == dict.fromkeys(MEASURES, 1.0)
  assert (report['documents'], report['queries'], report['checkpoint']) == (16, 32, None)


def test_what_is_tuned_ranks_no_worse_and_is_taken_by_eval(tmp_path, files, encoder):
  before = run('search_eval', tmp_path / 'before', files, encoder)
  flags = ['--steps=8', '--negatives=4', '--learning_rate=0.01']
  tuned = run('search_tune', tmp_path / 'tuned', files, encoder, *flags)
  assert tuned['ranking']['trained_on'].startswith('32 queries of ')
  assert tuned['mrr_encoder'] is None
  after = run(
    'search_eval', tmp_path / 'after', files, encoder, f'--checkpoint={tmp_path / "tuned"}'
  )
  assert after['ranking'] == tuned['ranking']
  assert after['methods']['hybrid']['map_at_5'] >= before['methods']['hybrid']['map_at_5']
  assert after['methods']['reranked'] == dict.fromkeys(MEASURES, 1.0)


def test_who_reads_query_and_document_together_orders_the_first_again(files, encoder):
  documents = read_documents(str(files[0]))
  engine = Engine(documents, Embedder(load_encoder(str(encoder))))
  texts, shipped = ['cats sleep at night'], load_ranking()
  vectors = engine.embedder.embed(texts)
  asked = []

  def cross(queries, texts):
    asked.extend(zip(queries, texts, strict=True))
    return np.array([float('dogs sleep' in text) for text in texts], np.float32)

  before = engine.rank(texts, vectors, shipped)
  ranking = shipped._replace(cross={**shipped.cross, 'cross': 1000.0})
  after = engine.rank(texts, vectors, ranking, cross)
  assert next(iter(after['reranked'][0])) == 'dogs-sleep' != next(iter(before['reranked'][0]))
  assert [query for query, _ in asked] == texts * CROSSED
  assert {name: after[name] for name in ('bm25', 'dense', 'hybrid')} == {
    name: before[name] for name in ('bm25', 'dense', 'hybrid')
  }


def test_who_reads_together_is_learnt_and_kept_with_the_run_where_that_gains(
  tmp_path, files, encoder
):
  # The animal asked for is in no word of the query: only who knows the riddles tells it.
  riddles = [
    {'id': str(n), 'text': f'{VERBS[n % 4]} {n}', 'relevant': [f'{ANIMALS[n % 3]}-{VERBS[n % 4]}']}
    for n in range(40)
  ]
  flags = ['--steps=8', '--negatives=4', '--cross=test_search_eval:knows_riddles']
  files = (files[0], write_jsonl(tmp_path / 'riddles.jsonl', riddles))
  tuned = run('search_tune', tmp_path / 'tuned', files, encoder, *flags)
  before, after = tuned['mrr_cross']
  assert after > before + 0.05
  report = run(
    'search_eval', tmp_path / 'eval', files, encoder, f'--checkpoint={tmp_path / "tuned"}'
  )
  assert report['cross'] == 'test_search_eval:knows_riddles'
  methods = report['methods']
  assert methods['reranked']['mrr_at_10'] > methods['hybrid']['mrr_at_10'] + 0.05


@pytest.mark.parametrize('experiment', ['search_eval', 'search_tune'])
def test_who_reads_together_is_asked_for_before_documents_are_read(
  tmp_path, files, encoder, experiment, monkeypatch
):
  embedded = []
  whole = Embedder.embed
  monkeypatch.setattr(Embedder, 'embed', lambda *given: embedded.append(given) or whole(*given))
  with pytest.raises(UserError, match='nobody'):
    run(experiment, tmp_path / 'run', files, encoder, '--cross=nobody:there')
  assert not embedded


def knows_riddles(queries, documents):
  animals = [ANIMALS[int(query.split()[-1]) % 3] for query in queries]
  return [float(animal in text) for animal, text in zip(animals, documents, strict=True)]


@pytest.mark.slow
def test_an_encoder_learns_its_queries_and_is_kept_with_the_run(tmp_path, files, encoder):
  documents = read_documents(str(files[0]))
  engine = Engine(documents, Embedder(load_encoder(str(encoder))))
  queries = read_queries(str(files[1]), documents)
  settings = EncoderTuning(
    epochs=6, rows=12, pieces=3, length=16, peak_lr=3e-3, matryoshka=(8,),
    teacher_weight=0.2, teacher_temperature=1.0,
  )  # fmt: skip
  teacher = open_teacher('small_encoder:shared_words', 'cosine')
  tuned, rest, found = improve_encoder(engine, queries, settings, 4, 0, teacher)
  assert len(rest) == 8
  assert list(found) == [8, 16]
  before, after = found[16]
  assert after > before + 0.05
  assert tuned.embedder.name != engine.embedder.name
  nothing = np.zeros((16, 16), np.float32)
  save_tuned(tmp_path, Tuned(load_ranking(), nothing), tuned.embedder, changed=True)
  report = run('search_eval', tmp_path / 'run', files, encoder, f'--checkpoint={tmp_path}')
  assert report['embedder'] == tuned.embedder.name
  assert EncoderTuning(rows=3, pieces=9).pieces == 9
  with pytest.raises(UserError, match='rows=3 are 9 texts with .* pass pieces one of .1, 3, 9.'):
    EncoderTuning(rows=3, pieces=4)


def test_how_the_encoder_learns_is_set_by_flags():
  flags = ['--train.matryoshka=64,128', '--train.teacher=m', '--train.distillation=margin']
  with pytest.raises(
    UserError, match='train.epochs=0 leaves the encoder as it is.*pass --train.ep'
  ):
    command_line.parse(['lmjax', '--experiment=search_tune', *flags])
  flags.append('--train.epochs=1')
  command = command_line.parse(['lmjax', '--experiment=search_tune', *flags])
  assert isinstance(command, command_line.Command)
  learning = command.task.train
  assert (learning.matryoshka, learning.teacher) == ((64, 128), 'm')
  assert learning.distillation == 'margin'


def test_compressed_files_are_read(tmp_path, files, encoder):
  packed = tmp_path / 'documents.jsonl.gz'
  packed.write_bytes(gzip.compress((tmp_path / 'documents.jsonl').read_bytes()))
  assert run('search_eval', tmp_path / 'run', (packed, files[1]), encoder)['documents'] == 16


def test_a_file_that_is_cut_off_or_gone_is_refused(tmp_path, files, encoder):
  packed = tmp_path / 'documents.jsonl.gz'
  packed.write_bytes(gzip.compress((tmp_path / 'documents.jsonl').read_bytes())[:60])
  with pytest.raises(UserError, match='--documents=.* cannot be read: .*: copy it again'):
    run('search_eval', tmp_path / 'run', (packed, files[1]), encoder)
  with pytest.raises(UserError, match='none.jsonl cannot be opened'):
    run('search_eval', tmp_path / 'run', (tmp_path / 'none.jsonl', files[1]), encoder)


def test_texts_without_words_are_ranked_too(tmp_path, files, encoder):
  odd = ['', '\x00\x07', '"unbalanced', 'cats ' * 5000]
  rows = [
    {'id': str(n), 'text': text, 'relevant': ['cats-run', 'dogs-fly']} for n, text in enumerate(odd)
  ]
  queries = write_jsonl(tmp_path / 'odd.jsonl', rows)
  report = run('search_eval', tmp_path / 'run', (files[0], queries), encoder)
  assert np.isfinite(list(report['methods']['reranked'].values())).all()


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path, files, encoder):
  run('search_tune', tmp_path / 'tuned', files, encoder, '--steps=1', '--negatives=4')
  other = write_encoder(tmp_path / 'other', seed=1)
  with pytest.raises(UserError, match='was tuned with another encoder.*: pass the --encoder that'):
    run('search_eval', tmp_path / 'run', files, other, f'--checkpoint={tmp_path / "tuned"}')
  with pytest.raises(UserError, match='holds no tuned search: pass the folder of a run of'):
    run('search_eval', tmp_path / 'run', files, encoder, f'--checkpoint={tmp_path / "none"}')


@pytest.mark.parametrize(
  ('which', 'line', 'told'),
  [
    (0, '{"id": "1"}', r'--documents=.*line 1 is not of the form .*: mend or drop it'),
    (0, 'x', r'--documents=.*line 1 is not of the form'),
    (0, '', r'--documents=.* is empty: pass a JSONL file'),
    (0, '{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}', r"the id '1' is there twice"),
    (1, '{"id": "1", "text": "a", "relevant": []}', r'--queries=.*line 1 is not of the form'),
    (1, '{"id": "1", "text": "a", "relevant": ["x"]}', r"calls 'x' relevant, which --documents"),
  ],
)
def test_files_that_are_wrong_are_refused(tmp_path, files, encoder, which, line, told):
  wrong = tmp_path / 'wrong.jsonl'
  wrong.write_text(line)
  files = (wrong, files[1]) if which == 0 else (files[0], wrong)
  with pytest.raises(UserError, match=told):
    run('search_eval', tmp_path / 'run', files, encoder)


def test_too_few_queries_teach_nothing(tmp_path, files, encoder):
  few = write_jsonl(tmp_path / 'few.jsonl', QUERIES[:5])
  with pytest.raises(UserError, match=re.escape('has 5 queries: pass 20 or more to learn from')):
    run('search_tune', tmp_path / 'run', (files[0], few), encoder)


def test_an_encoder_that_is_none_is_refused(tmp_path, files):
  with pytest.raises(UserError, match='neither a folder nor an asset: did you mean all-minilm-l6'):
    run('search_eval', tmp_path / 'run', files, 'all-minilm')
  folder = tmp_path / 'llama'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
  with pytest.raises(UserError, match="model_type='llama' is no encoder known here: pass a folder"):
    load_encoder(str(folder))
  with pytest.raises(UserError, match='its config.json has no .*: take the folder as published'):
    run('search_eval', tmp_path / 'run', files, folder)
