"""search_posts as a user starts it, on a tiny encoder and posts of a file: built, gone on with, measured, asked."""

import json

import pytest
from small_encoder import write_encoder, write_jsonl
from small_posts import make_posts

from lmjax.core import command_line
from lmjax.core.errors import UserError
from lmjax.search.sets import MEASURES

POSTS = [post._asdict() for post in make_posts(30)]


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  return write_encoder(tmp_path_factory.mktemp('encoder') / 'bert')


@pytest.fixture
def run(tmp_path, encoder):
  def run(*flags, posts=POSTS):
    path = write_jsonl(tmp_path / 'posts.jsonl', posts)
    flags = [f'--posts={path}', f'--encoder={encoder}', '--boolq=0', *flags]
    command = command_line.parse(['lmjax', '--experiment=search_posts', *flags])
    assert isinstance(command, command_line.Command)
    (tmp_path / 'run').mkdir(exist_ok=True)
    return command.task.run(tmp_path / 'run')

  return run


def test_it_builds_measures_and_answers(run, tmp_path, capsys):
  rows = [{'id': str(n), 'text': f'mark{n}', 'relevant': [f'p{n}']} for n in range(0, 30, 3)]
  judged = write_jsonl(
    tmp_path / 'documents.jsonl', [{'id': p['id'], 'text': p['text']} for p in POSTS]
  )
  queries = write_jsonl(tmp_path / 'queries.jsonl', rows)
  report = run(f'--documents={judged}', f'--queries={queries}', '--query=mark7 from:bob')
  assert report['documents'] == 30
  assert report['recall_at_10'] == 1.0  # flat: exact
  assert set(report['query_ms']) == {'p50', 'p99'}
  assert report['encode_posts_per_second'] > 0 < report['index_seconds']
  assert report['sets']['judged']['bm25'] == dict.fromkeys(MEASURES, 1.0)
  shown = capsys.readouterr().out
  assert 'p7: has mark7' in shown
  assert '30 posts' in shown


def test_the_next_start_goes_on_and_honours_what_was_deleted(run, tmp_path, capsys):
  run('--query=cats', posts=POSTS[:20])
  deleted = tmp_path / 'deleted.txt'
  deleted.write_text('p3\np25\n\nunknown\n')
  report = run('--query="mark3"', f'--deleted={deleted}')
  counts = report['counts']
  assert counts == {
    'given': 30,
    'added': 9,
    'changed': 0,
    'kept': 19,
    'banned': 2,
    'repeated': 0,
    'deleted': 1,
  }
  assert report['documents'] == 28
  assert 'nothing close was found' in capsys.readouterr().out.splitlines()


def test_vectors_can_be_shorter_and_coarser(run):
  report = run('--dimensions=8', '--precision=int8', '--query=mark7')
  assert (report['vectors'], report['recall_at_10']) == ('ScalarQuantizer', 1.0)
  again = run('--dimensions=8', '--precision=binary', '--query=cats')
  assert (again['vectors'], again['recall_at_10']) == ('LSH', 1.0)  # found by signs, then compared
  assert (again['counts']['kept'], again['embedder']) == (30, report['embedder'])
  with pytest.raises(UserError, match=r'was built with another encoder .*vectors of 8 numbers'):
    run('--query=cats')
  with pytest.raises(UserError, match='dimensions=99: this encoder has 16: pass as many or fewer'):
    run('--dimensions=99', '--query=cats')


def test_questions_are_typed_and_wrong_ones_told(run, capsys, monkeypatch):
  typed = iter(['', 'mark4', 'form:bob', '/exit'])
  monkeypatch.setattr('builtins.input', lambda prompt: next(typed))
  run()
  out, err = capsys.readouterr()
  assert 'p4: has mark4' in out
  assert 'there is no filter form: (did you mean from?)' in err


def test_wrong_flags_are_refused_before_anything_is_built(run, tmp_path):
  with pytest.raises(UserError, match='a quote .* is opened and not closed'):
    run('--query="cats')
  with pytest.raises(UserError, match='--documents and --queries go together'):
    run('--documents=x')
  with pytest.raises(UserError, match='--deleted=none.txt.* cannot be'):
    run('--deleted=none.txt', '--query=cats')
  with pytest.raises(UserError, match='neither a folder nor an asset'):
    run('--encoder=nothing')


def test_a_report_is_json(run):
  assert json.loads(json.dumps(run('--query=cats')))['vectors'] == 'FlatIP'


@pytest.mark.parametrize('flag', ['--cross=nobody:there', '--checkpoint=nowhere'])
def test_what_ranks_is_opened_before_posts_are_read(run, tmp_path, flag):
  with pytest.raises(UserError, match=flag[2:].split('=')[1]):
    run(flag, '--query=cats', '--boolq=10')
  assert not (tmp_path / 'run' / 'index').exists()
