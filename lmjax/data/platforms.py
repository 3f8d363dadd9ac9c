"""What is inside the JSON that platforms give: each item of a document as (values, problem).

A problem names why an item is no post; its values are then ignored. Knows nothing about files.
"""

import html.parser
from collections.abc import Iterator
from typing import Any

Item = tuple[Any, str]


def json_items(document: Any) -> Iterator[Item]:
  """The items of a list, or the document itself."""
  for item in document if isinstance(document, list) else [document]:
    yield item, ''


def archive_items(document: Any) -> Iterator[Item]:
  """The tweets of `tweets.js`; before 2019 they had no wrapper."""
  for item, _ in json_items(document):
    yield item.get('tweet', item) if isinstance(item, dict) else item, ''


def page_items(page: Any) -> Iterator[Item]:
  """The posts of a page of the X API v2, with the full text of long ones."""
  if not isinstance(page, dict) or not ('data' in page or 'meta' in page):
    yield {}, 'malformed'
    return
  for post, _ in json_items(page.get('data', [])):
    note = post.get('note_tweet') if isinstance(post, dict) else None
    yield {**post, 'text': note['text']} if isinstance(note, dict) and 'text' in note else post, ''


def outbox_items(page: Any) -> Iterator[Item]:
  """The notes that an ActivityPub outbox created, as plain text."""
  activities = page.get('orderedItems') if isinstance(page, dict) else None
  if not isinstance(activities, list):
    yield {}, 'malformed'
    return
  for activity in activities:
    if not isinstance(activity, dict):
      yield {}, 'malformed'
      continue
    note = activity.get('object') if activity.get('type') == 'Create' else activity
    if isinstance(note, dict) and note.get('type') == 'Note':
      text = _plain_text(str(note.get('content') or ''))
      author = note.get('attributedTo') or activity.get('actor')
      row = {'text': text, 'id': note.get('id'), 'published': note.get('published')}
      yield {**row, 'author': author}, ''
    else:
      yield {}, 'boost' if activity.get('type') == 'Announce' else 'not_a_post'


class _PlainText(html.parser.HTMLParser):
  def __init__(self) -> None:
    super().__init__(convert_charrefs=True)
    self.pieces: list[str] = []

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.pieces.append({'br': '\n', 'p': '\n\n'}.get(tag, ''))

  def handle_data(self, data: str) -> None:
    self.pieces.append(data)


def _plain_text(content: str) -> str:
  """HTML as plain text: lines for <br>, paragraphs for <p>, no tags, entities unescaped."""
  parser = _PlainText()
  # The parser fails on broken declarations, and the HTML of a post has no whole ones either.
  parser.feed(content.replace('<!', '&lt;!'))
  parser.close()
  return ''.join(parser.pieces).strip()
