"""The same posts in every format come out the same; broken rows come out as problems."""

import csv
import gzip
import html
import io
import json
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from lmjax.core.errors import UserError
from lmjax.data import formats, platforms

FIXTURE = Path(__file__).parent / 'fixture/posts.jsonl'
POSTS = [json.loads(line) for line in FIXTURE.read_text(encoding='utf-8').splitlines()][:60]
ONE_LINE = [post for post in POSTS if '\n' not in post['text'].strip()]


def table(posts, delimiter) -> bytes:
  out = io.StringIO()
  writer = csv.DictWriter(out, POSTS[0], delimiter=delimiter)
  writer.writeheader()
  writer.writerows(posts)
  return out.getvalue().encode()


def parquet(posts) -> bytes:
  out = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(posts), out, row_group_size=7)
  return out.getvalue()


def lines(values) -> bytes:
  return b''.join(json.dumps(value, ensure_ascii=False).encode() + b'\n' for value in values)


def archive(posts, wrapped=True) -> bytes:
  tweets = [
    {'id_str': post['id'], 'full_text': post['text'], 'created_at': post['created_at']}
    for post in posts
  ]
  items = [{'tweet': tweet} for tweet in tweets] if wrapped else tweets
  return f'window.YTD.tweets.part0 = {json.dumps(items, indent=2)}'.encode()


def pages(posts) -> list[dict]:
  def item(post):
    return {**{key: post[key] for key in ('id', 'text', 'created_at')}, 'author_id': post['author']}

  parts = (posts[:30], posts[30:])
  return [{'data': [item(post) for post in part], 'meta': {'next_token': 'x'}} for part in parts]


def outbox(posts) -> dict:
  activities = []
  for post in posts:
    text = html.escape(post['text']).replace('\n\n', '</p><p>').replace('\n', '<br />')
    note = {'type': 'Note', 'id': post['id'], 'published': post['created_at']}
    note |= {'attributedTo': post['author'], 'content': f'<p>{text}</p>'}
    activities.append({'type': 'Create', 'actor': 'me', 'object': note})
  return {
    '@context': 'https://www.w3.org/ns/activitystreams',
    'type': 'OrderedCollection',
    'orderedItems': activities,
  }


WRITTEN = {
  'jsonl': lines(POSTS),
  'json': json.dumps(POSTS, indent=1).encode(),
  'csv': table(POSTS, ','),
  'tsv': table(POSTS, '\t'),
  'parquet': parquet(POSTS),
  'text': b''.join(post['text'].encode() + b'\n' for post in ONE_LINE),
  'twitter_archive': archive(POSTS),
  'x_api': lines(pages(POSTS)),
  'activitypub': json.dumps(outbox(POSTS)).encode(),
}
VARIANTS = {
  'one-line json': ('json', json.dumps(POSTS).encode()),
  'semicolons': ('csv', table(POSTS, ';')),
  'old tweet.js': ('twitter_archive', archive(POSTS, wrapped=False)),
  'one page': ('x_api', json.dumps(pages(POSTS[:30])[0], indent=2).encode()),
  'indented outbox': ('activitypub', json.dumps(outbox(POSTS), indent=2).encode()),
  'outbox pages': ('activitypub', lines([outbox(POSTS[:30]), outbox(POSTS[30:])])),
}


def rows_of(tmp_path, content: bytes, format='auto') -> tuple[str, list[formats.Row]]:
  path = tmp_path / 'posts'
  path.write_bytes(content)
  seen = formats.look(str(path), format)
  return seen.format, list(formats.read_rows(str(path), seen))


def texts_of(rows) -> list[str]:
  assert not any(row.problem for row in rows)
  return [row.values.get('full_text', row.values.get('text')).strip() for row in rows]


def stripped(posts) -> list[str]:
  return [post['text'].strip() for post in posts]


@pytest.mark.parametrize('format', WRITTEN)
def test_format_is_told_from_content_and_gives_the_texts(tmp_path, format):
  found, rows = rows_of(tmp_path, WRITTEN[format])
  assert found == format
  assert texts_of(rows) == stripped(ONE_LINE if format == 'text' else POSTS)


@pytest.mark.parametrize('name', VARIANTS)
def test_variant_is_told_from_content_and_gives_the_texts(tmp_path, name):
  format, content = VARIANTS[name]
  found, rows = rows_of(tmp_path, content)
  assert found == format
  assert texts_of(rows) == stripped(POSTS)[: len(rows)]
  assert len(rows) >= 7


@pytest.mark.parametrize('format', [name for name in WRITTEN if name != 'parquet'])
@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
def test_byte_order_marks(tmp_path, format, encoding):
  content = WRITTEN[format].decode()
  mark = '\ufeff' if encoding in ('utf-16-le', 'utf-16-be') else ''
  found, rows = rows_of(tmp_path, (mark + content).encode(encoding))
  assert found == format
  assert texts_of(rows) == stripped(ONE_LINE if format == 'text' else POSTS)


@pytest.mark.parametrize('format', [name for name in WRITTEN if name != 'parquet'])
def test_packed(tmp_path, format):
  found, rows = rows_of(tmp_path, gzip.compress(WRITTEN[format]))
  assert found == format
  assert len(rows) >= len(ONE_LINE)


@pytest.mark.parametrize('format', WRITTEN)
def test_packed_file_that_was_cut_off(tmp_path, format):
  with pytest.raises(UserError, match=r'may be cut off .* get it again'):
    rows_of(tmp_path, gzip.compress(WRITTEN[format])[:-20], format)


def test_parquet_reads_the_asked_columns_only(tmp_path):
  path = tmp_path / 'posts'
  path.write_bytes(WRITTEN['parquet'])
  seen = formats.look(str(path))
  assert seen.columns == tuple(POSTS[0])
  first = next(formats.read_rows(str(path), seen, {'text'}))
  assert first.values == {'text': POSTS[0]['text']}


def test_parquet_times_are_unix_microseconds(tmp_path):
  kinds = [pa.timestamp('ns'), pa.timestamp('s', 'Europe/Paris'), pa.timestamp('ms')]
  columns = [pa.array([1_700_000_000, None]).cast(pa.timestamp('s')).cast(kind) for kind in kinds]
  pq.write_table(pa.table(dict(zip('abc', columns))), tmp_path / 'posts')
  seen = formats.look(str(tmp_path / 'posts'))
  rows = [row.values for row in formats.read_rows(str(tmp_path / 'posts'), seen)]
  assert rows == [dict.fromkeys('abc', 1_700_000_000_000_000), dict.fromkeys('abc')]


def test_broken_lines_of_jsonl_are_named(tmp_path):
  content = b'{"text": "cut o\n' + lines(POSTS[:3]) + b'[1]\n\n"word"\n' + b'[' * 100_000 + b'\n'
  format, rows = rows_of(tmp_path, content)
  assert format == 'jsonl'
  bad = [(row.place.rpartition(':')[2], row.problem) for row in rows if row.problem]
  assert bad == [(at, 'malformed') for at in ('1', '5', '7', '8')]
  assert len(rows) == 7


def test_broken_page_is_one_malformed_row(tmp_path):
  content = lines([*pages(POSTS), {'errors': []}, {'meta': {'result_count': 0}}]) + b'{cut\n'
  format, rows = rows_of(tmp_path, content)
  assert format == 'x_api'
  assert [row.problem for row in rows if row.problem] == ['malformed'] * 2
  assert len(rows) == len(POSTS) + 2


def test_long_post_of_x_api_is_whole(tmp_path):
  page = {'data': [{'id': '1', 'text': 'cut…', 'note_tweet': {'text': 'cut no more'}}]}
  assert texts_of(rows_of(tmp_path, lines([page]))[1]) == ['cut no more']


def test_stray_quote_in_csv_costs_one_row(tmp_path):
  content = b'id,text\n1,"opened, never closed\n2,fine\n3,"two\nlines"\n4,"quote" behind\n5,last\n'
  format, rows = rows_of(tmp_path, content)
  assert format == 'csv'
  assert [row.values.get('text') for row in rows] == [None, 'fine', 'two\nlines', None, 'last']
  assert [row.place.rpartition(':')[2] for row in rows] == ['2', '3', '4', '6', '7']


def test_csv_rows_of_another_width_are_malformed(tmp_path):
  _, rows = rows_of(tmp_path, b'id,text\n1,a\n\n2\n3,b,c\n4,d\n', 'csv')
  assert [row.problem for row in rows] == ['', 'malformed', 'malformed', '']


def test_csv_with_very_long_and_unnamed_fields(tmp_path):
  long = 'word, ' * 200_000
  format, rows = rows_of(tmp_path, f',text\r\n0,"{long}"\r\n1,short\r\n'.encode())
  assert format == 'csv'
  assert [row.values['text'] for row in rows] == [long, 'short']


def test_bad_bytes_spoil_their_own_row_only(tmp_path):
  _, rows = rows_of(
    tmp_path, b'{"text": "fine"}\n{"text": "caf\xe9"}\n{"x": "\xff", "text": "ok"}\n'
  )
  assert [row.values['text'] for row in rows] == ['fine', 'caf\udcff', 'ok']


def test_odd_byte_at_the_end_of_utf16(tmp_path):
  _, rows = rows_of(tmp_path, 'first\nsecond\n'.encode('utf-16') + b'x')
  assert [row.values['text'] for row in rows] == ['first\n', 'second\n', '\udcff']


@pytest.mark.parametrize(
  'content',
  [
    b'Hello, world\nI say\n',
    b'[BREAKING] news\n',
    b'{ a brace\n',
    b'one\n',
    b'',
    b'a, b and c, d\ne f\ng h\n',
    'Was, wäre!, wenn\n1,2,3\n'.encode(),
  ],
)
def test_prose_is_text(tmp_path, content):
  format, rows = rows_of(tmp_path, content)
  assert format == 'text'
  assert len(rows) == content.count(b'\n')


@pytest.mark.parametrize('content', [b'text\nHello\n', b'id\ttext\n1\tHello\n', b'id,text\n'])
def test_header_makes_a_table(tmp_path, content):
  format, rows = rows_of(tmp_path, content)
  assert format in ('csv', 'tsv')
  assert len(rows) == content.count(b'\n') - 1


def test_utf16_without_its_mark_refused(tmp_path):
  with pytest.raises(UserError, match=r'is neither UTF-8 text .*: save it as UTF-8'):
    rows_of(tmp_path, 'plain words\n'.encode('utf-16-le'))


@pytest.mark.parametrize('format', ['json', 'twitter_archive', 'activitypub'])
def test_document_that_was_cut_off_refused(tmp_path, format):
  with pytest.raises(UserError, match=r'is not valid JSON .*: get it again'):
    rows_of(tmp_path, WRITTEN[format][:-20])


def test_other_format_than_said(tmp_path):
  with pytest.raises(UserError, match=r'cannot be read as parquet .*: .* pass --posts_format'):
    rows_of(tmp_path, WRITTEN['jsonl'], 'parquet')


def test_outbox_tells_boosts_from_posts():
  note = {'type': 'Note', 'content': 'x', 'id': 'a', 'published': 'b', 'attributedTo': 'c'}
  activities = [
    {'type': 'Create', 'object': note},
    {'type': 'Announce', 'object': 'https://example.org/1'},
    {'type': 'Create', 'object': {'type': 'Question'}},
    {'type': 'Like'},
    note,
    None,
  ]
  items = list(platforms.outbox_items({'orderedItems': activities}))
  row = {'text': 'x', 'id': 'a', 'published': 'b', 'author': 'c'}
  problems = ['boost', 'not_a_post', 'not_a_post']
  assert items == [
    (row, ''),
    *(({}, problem) for problem in problems),
    (row, ''),
    ({}, 'malformed'),
  ]
  assert list(platforms.outbox_items({'first': 'x'})) == [({}, 'malformed')]


def test_html_becomes_plain_text():
  content = '<p>a &lt;b&gt; &amp; <a href="u"><span>c</span>d</a><br>e</p><p>f</p>'
  (row, _), *_ = platforms.outbox_items({'orderedItems': [{'type': 'Note', 'content': content}]})
  assert row['text'] == 'a <b> & cd\ne\n\nf'


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(alphabet='<>![]-/?&#;xp "\'= a', max_size=40))
def test_any_html_is_read(content):
  outbox = {'orderedItems': [{'type': 'Note', 'content': content}]}
  assert len(list(platforms.outbox_items(outbox))) == 1


@hypothesis.settings(
  deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(content=st.binary(max_size=200), format=st.sampled_from(['jsonl', 'csv', 'text']))
def test_any_bytes_end_in_rows(tmp_path, content, format):
  _, rows = rows_of(tmp_path, b'text\n' + content, format)
  assert all(isinstance(row.values, dict) and (row.values or row.problem) for row in rows)
