"""From files to posts: fields, times, the accounting of rows, and what a user is told."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmjax.core import assets
from lmjax.core.config import override
from lmjax.core.errors import UserError
from lmjax.data.sources import Post, Posts, Rows

FIXTURE = str(Path(__file__).parent / 'fixture/posts.jsonl')


def write(folder: Path, *values, name='posts.jsonl') -> str:
  path = folder / name
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))
  return str(path)


def read(path: str, **settings) -> tuple[list[Post], Rows]:
  rows = Rows()
  return list(Posts(posts=path, **settings).read(rows)), rows


def test_every_row_of_the_fixture_is_accounted_for():
  posts, rows = read(FIXTURE)
  assert rows.total == len(Path(FIXTURE).read_bytes().splitlines()) == 399
  assert rows.dropped == {'empty': 3}
  assert len(posts) + 3 == rows.total
  assert all(
    post.text == post.text.strip() and post.id and post.time and post.author for post in posts
  )
  assert f"{FIXTURE} read as jsonl, text from 'text', id from 'id'" in rows.sentences()[0]


def test_formats_end_in_the_same_posts(tmp_path):
  values = [json.loads(line) for line in Path(FIXTURE).read_text().splitlines()]
  out = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(values), out)
  (tmp_path / 'a.parquet').write_bytes(out.getvalue())
  (tmp_path / 'b.json.zst').write_bytes(
    pa.compress(json.dumps(values).encode(), 'zstd', asbytes=True)
  )
  page = {'data': [{**value, 'author_id': value.pop('author')} for value in values]}
  (tmp_path / 'c.json.gz').write_bytes(gzip.compress(json.dumps(page).encode()))
  expected, _ = read(FIXTURE)
  assert len(expected) == 396
  for name in ('a.parquet', 'b.json.zst', 'c.json.gz'):
    assert read(str(tmp_path / name))[0] == expected


@pytest.mark.parametrize(
  ('value', 'seconds'),
  [
    ('2018-10-10T20:19:24Z', 1539202764),
    ('2018-10-10T22:19:24.500+02:00', 1539202764.5),
    ('2018-10-10 20:19:24', 1539202764),
    ('2018-10-10 20:19:24 UTC', 1539202764),
    ('2018-10-10', 1539129600),
    ('Wed Oct 10 20:19:24 +0000 2018', 1539202764),
    ('Wed, 10 Oct 2018 22:19:24 +0200', 1539202764),
    (1539202764, 1539202764),
    ('1539202764.5', 1539202764.5),
    (1539202764500, 1539202764.5),
    ('1539202764500000', 1539202764.5),
    (-86400, -86400),
    (None, None),
    ('', None),
  ],
)
def test_times(tmp_path, value, seconds):
  (post,), rows = read(write(tmp_path, {'text': 'x', 'created_at': value}))
  assert post.time == seconds
  assert rows.untimed == 0


@pytest.mark.parametrize('value', ['yesterday', 'NaN', '2018-13-01', [], '1e999', '9' * 400])
def test_bad_time_is_counted_and_the_post_is_used(tmp_path, value):
  (post,), rows = read(write(tmp_path, {'text': 'x', 'created_at': value}))
  assert post == Post('x')
  assert rows.untimed == 1
  assert '1 of 1 rows used without their time, which is no date: ' in rows.sentences()[-1]
  assert rows.sentences()[-1].endswith('posts.jsonl:1')


def test_fields_are_found_by_name(tmp_path):
  row = {
    'Text': 'cut',
    'Full_Text': ' whole\n',
    'tweet_id': 7,
    'Date': '1970-01-02',
    'username': 'ada',
  }
  assert read(write(tmp_path, row))[0] == [Post('whole', '7', 86400, 'ada')]


def test_what_a_link_is_called_is_the_posts_title(tmp_path):
  row = {'text': 'see https://t.co/x', 'title': 'mine', 'URL_title': ' A page '}
  assert read(write(tmp_path, row))[0][0].title == 'A page'
  path = write(tmp_path, {'title': 'all there is', 'id': 1})
  assert read(path, text_field='title')[0] == [Post('all there is', '1')]


def test_fields_may_be_named(tmp_path):
  path = write(
    tmp_path, {'text': 'a', 'b': 'the post', 'c': 'me', 'd': 5, 'e': 9, 'id': 'not this'}
  )
  fields = {'text_field': 'b', 'author_field': 'c', 'time_field': 'd', 'id_field': 'e'}
  assert read(path, **fields)[0] == [Post('the post', '9', 5, 'me')]


def test_only_column_is_the_text(tmp_path):
  assert read(write(tmp_path, {'what': 'a'}))[0] == [Post('a')]


def test_labels_that_are_no_text_are_left_out(tmp_path):
  assert read(write(tmp_path, {'text': 'a', 'user': {'name': 'x'}, 'id': None}))[0] == [Post('a')]


def test_bad_rows_are_counted_by_reason_with_their_places(tmp_path):
  path = tmp_path / 'posts.jsonl'
  good = b'{"text": "good", "id": "1"}\n'
  bad = [
    b'{"text": "caf\xe9"}\n',
    b'{"text": "\\ud800"}\n',
    b'{"te\n',
    b'{"text": 5}\n',
    b'{"x": 1}\n',
  ]
  path.write_bytes(good * 60 + b''.join(bad) + b'{"text": " "}\n')
  posts, rows = read(str(path))
  assert len(posts) == 60
  assert rows.total == 66
  assert rows.dropped == {'undecodable': 2, 'malformed': 1, 'no_text': 2, 'empty': 1}
  assert rows.examples['undecodable'] == [f'{path}:61', f'{path}:62']
  assert (
    f'1 of 66 rows dropped as malformed (not a valid row of its format): {path}:63'
    in rows.sentences()
  )


def test_only_five_examples_are_kept(tmp_path):
  _, rows = read(write(tmp_path, *[{'text': 'a'}] * 100, *[{'text': ''}] * 9))
  assert len(rows.examples['empty']) == 5
  assert rows.sentences()[-1].endswith(':105, ...')


def test_binary_column_is_utf8(tmp_path):
  pq.write_table(pa.table({'text': [b'caf\xc3\xa9', *[b'a'] * 9, b'\xe9']}), tmp_path / 'posts')
  posts, rows = read(str(tmp_path / 'posts'))
  assert posts[0].text == 'café'
  assert rows.dropped == {'undecodable': 1}


def test_too_many_bad_rows_are_refused(tmp_path):
  path = write(tmp_path, *[{'text': 'good'}] * 8, {'id': 1}, {'id': 2})
  expected = (
    rf'2 of 10 rows are bad, more than --bad_rows=0.1 allows: 2 no_text \({path}:9, .* raise'
  )
  with pytest.raises(UserError, match=expected):
    read(path)
  assert len(read(path, bad_rows=0.2)[0]) == 8


def test_missing_field_is_told_before_reading(tmp_path):
  path = write(tmp_path, {'text': 'a', 'autor': 'b'})
  expected = r'--author_field=author is not in .* \(did you mean autor\?\): pass one of text, autor'
  with pytest.raises(UserError, match=expected):
    Posts(posts=path, author_field='author').read(Rows())


def test_no_column_like_a_text(tmp_path):
  path = write(tmp_path, {'a': 'x', 'b': 'y'})
  with pytest.raises(
    UserError, match='pass --text_field with one of a, b, or another --posts_format'
  ):
    Posts(posts=path).read(Rows())


def test_unmatched_pattern(tmp_path):
  with pytest.raises(
    UserError, match=r'no file matches --posts=.*: check the path, or pass an asset'
  ):
    Posts(posts=f'{tmp_path}/*.csv').files()
  with pytest.raises(UserError, match=r'did you mean healthtweets\?'):
    Posts(posts='healthtweet').read(Rows())


def test_nothing_to_read_refused():
  with pytest.raises(UserError, match=r'expected an asset \(healthtweets\) or files'):
    Posts(posts=' , ')


def test_unknown_format_refused():
  with pytest.raises(UserError, match='expected one of: auto, jsonl, json, csv'):
    override(Posts(), {'posts_format': 'word'})


def test_files_are_sorted_and_named_once(tmp_path):
  for name in 'bac':
    write(tmp_path, {'text': name}, name=name)
  found = Posts(posts=f'{tmp_path}/[bc], {tmp_path}/a,{tmp_path}/*').files()
  assert found == [f'{tmp_path}/{name}' for name in 'abc']
  posts, rows = read(f'{tmp_path}/*')
  assert [post.text for post in posts] == ['a', 'b', 'c']
  assert rows.notes == [f"{tmp_path}/a and 2 more read as jsonl, text from 'text'"]


def test_empty_file_has_no_rows(tmp_path):
  (tmp_path / 'empty').touch()
  posts, rows = read(str(tmp_path / 'empty'))
  assert (posts, rows.total) == ([], 0)


def test_fingerprint_is_of_the_content(tmp_path):
  path = write(tmp_path, {'text': 'a'})
  other = write(tmp_path, {'text': 'b'}, name='other')
  first = Posts(posts=f'{path},{other}').fingerprint()
  (tmp_path / 'moved').mkdir()
  Path(path).rename(tmp_path / 'moved/elsewhere')
  moved = f'{other},{tmp_path}/moved/*'
  assert Posts(posts=moved).fingerprint() == json.loads(json.dumps(first)) == first
  assert Posts(posts=moved, text_field='text').fingerprint() != first
  Path(other).write_text('{"text": "c"}\n')
  assert Posts(posts=moved).fingerprint() != first


def test_fingerprint_of_an_asset_needs_no_download(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  assert Posts().fingerprint()['sha256'] == [assets.ASSETS['healthtweets'].sha256]
  assert list(tmp_path.iterdir()) == []
