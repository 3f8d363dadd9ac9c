"""/ads: creatives of a brief, reviewed; edited ones reviewed anew, approved by a person, exported as a zip.

A creative is a folder as `ads_studio` writes it, below the server's workdir.
"""

import io
import json
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lmjax.ads.brief import Brief, Refused
from lmjax.ads.creative import Copy, source_of
from lmjax.ads.maker import TEMPLATE, Candidate, Maker, limits_for, score_copy
from lmjax.ads.record import FILE, check_whole, decide, read_record
from lmjax.ads.studio import SAMPLER, accept_brief
from lmjax.ads.writer import TOKENS, copy_grammars, copy_messages, read_copy
from lmjax.core.errors import UserError
from lmjax.core.task import write_json
from lmjax.generate.settings import Settings
from lmjax.generate.text import Ended, Piece
from lmjax.serve.errors import REFUSALS, ApiError, reply
from lmjax.serve.generation import REFUSAL
from lmjax.serve.guard import key_of
from lmjax.serve.schemas import SEEDS, Strict, Text
from lmjax.serve.service import Ask, Service

_KEPT = 500  # creatives; the oldest that nobody approved give way
_TRIES = 2  # times as many copies are drawn as are shown
_EDITED = ', edited by hand'
_TYPES = {'png': 'image/png', 'svg': 'image/svg+xml'}
_FILES: dict[int | str, dict[str, Any]] = {
  200: {'content': {kind: {} for kind in _TYPES.values()}, 'description': 'The picture.'}
}
_ZIP: dict[int | str, dict[str, Any]] = {
  200: {'content': {'application/zip': {}}, 'description': 'copy.json, review.json and pictures.'}
}


class AdsRequest(Strict):
  """`brief` is as BUILD.md and `ads_studio` have it; a picture is named in words, never by a file."""

  brief: dict[Text, Any]
  candidates: int = Field(default=4, ge=1, le=8)
  templates: int = Field(default=2, ge=0, le=8)
  seed: int = Field(default=0, ge=0, lt=SEEDS)


class CopyEdit(Strict):
  headline: Text = Field(max_length=500)
  body: Text = Field(max_length=500)
  action: Text = Field(max_length=500)


class Decided(Strict):
  """`by`: who decides, a person's name."""

  state: Literal['approved', 'rejected', 'pending']
  by: Text = Field(min_length=1, max_length=100)
  note: Text = Field(default='', max_length=1000)


class Reason(Strict):
  kind: str
  words: str


class Image(Strict):
  """`file` is asked for at /ads/ID/FILE."""

  file: str
  width: int
  height: int
  alt: str
  contrast: float


class Approval(Strict):
  state: str
  by: str
  at: str
  note: str


class Creative(Strict):
  """An advertisement and its review; one that is `blocked` has reasons and no pictures."""

  id: str
  headline: str
  body: str
  action: str
  made_by: str
  verdict: str
  reasons: list[Reason]
  scores: dict[str, float]
  disclosure: str
  images: list[Image]
  approval: Approval


class Refusal(Strict):
  headline: str
  body: str
  action: str
  reasons: list[Reason]


class Creatives(Strict):
  """The best first; `refused` are copies that no one is shown as creatives, with why.

  `facts_unsaid` are facts of the brief that none of the creatives says.
  """

  object: str
  data: list[Creative]
  refused: list[Refusal]
  facts_unsaid: list[str]


class Kept(NamedTuple):
  """A creative's folder, its brief as JSON and its record."""

  folder: Path
  said: Mapping[str, Any]
  record: Mapping[str, Any]


class Desk:
  """The folder of creatives, and what makes them."""

  def __init__(self, folder: Path, maker: Maker) -> None:
    self.maker, self._folder = maker, folder

  def add(self, said: Mapping[str, Any], brief: Brief, one: Candidate) -> dict[str, Any]:
    """Reviews, draws and keeps one; returns it as the API shows it."""
    problems = self.maker.check(brief, one.copy)
    picture = None if problems else self.maker.picture(brief, None)
    name = secrets.token_hex(12)
    try:
      record = self.maker.write(self._folder / name, said, brief, one, picture, problems)
    except BaseException:
      shutil.rmtree(self._folder / name, ignore_errors=True)
      raise
    write_json(self._folder / name / 'brief.json', said)
    for old in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
      if not _is_approved(old):
        shutil.rmtree(old, ignore_errors=True)
    return shown(name, record)

  def find(self, name: str) -> Kept:
    """ApiError where there is none."""
    folder = self._folder / name
    if not re.fullmatch('[0-9a-f]{24}', name) or not (folder / 'brief.json').is_file():
      raise ApiError(404, f'there is no creative {name[:40]!r}: make it again')
    said = json.loads((folder / 'brief.json').read_text(encoding='utf-8'))
    return Kept(folder, said, read_record(folder / FILE))

  def export(self, name: str) -> bytes:
    """A zip of an approved creative whose files are those that were approved."""
    kept = self.find(name)
    if kept.record['approval']['state'] != 'approved':
      raise ApiError(400, 'this creative is not approved: approve it first')
    _without_path(kept.folder, check_whole, kept.folder, kept.record)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
      for part in ['copy.json', FILE, *(image['file'] for image in kept.record['images'])]:
        archive.write(kept.folder / part, part)
    return file.getvalue()


def _is_approved(folder: Path) -> bool:
  try:
    return read_record(folder / FILE)['approval']['state'] == 'approved'
  except UserError:  # its making was cut off
    return False


def _without_path(folder: Path, call: Callable[..., Any], *arguments: Any) -> Any:
  """What `call` returns; its UserError as an ApiError that names no folder of this machine."""
  try:
    return call(*arguments)
  except UserError as error:
    raise ApiError(400, str(error).replace(str(folder), 'this creative')) from None


def shown(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
  """A record as the API shows it."""
  same = ('made_by', 'verdict', 'reasons', 'scores', 'disclosure', 'approval')
  images = [{key: image[key] for key in Image.model_fields} for image in record['images']]
  return {'id': name, **record['copy'], **{key: record[key] for key in same}, 'images': images}


def ads_routes(service: Service, desk: Desk | None) -> APIRouter:
  """The routes, where advertisements are made here or not."""
  router = APIRouter()

  def at_desk() -> Desk:
    if desk is None:
      raise ApiError(404, "no advertisements are made here: pip install 'lmjax[ads]', start again")
    return desk

  @router.post('/ads', response_model=Creatives, responses=REFUSALS)
  async def make(body: AdsRequest, http: Request) -> Any:
    """Makes ranked creatives of a brief, each reviewed and drawn in every size."""
    desk, entry = at_desk(), http.scope['state']['audit']
    entry |= {'asked': body.brief}
    try:
      brief = await run_in_threadpool(accept_brief, body.brief)
    except Refused as error:
      raise ApiError(400, str(error), code=error.reason, param='brief') from None
    asked = '\n'.join([source_of(brief), brief.tone, brief.picture])
    why = await run_in_threadpool(service.refuses, asked, 'input')
    if why is not None:
      entry['refused'] = [{'side': 'input', 'why': why}]
      raise ApiError(400, REFUSAL, code='content_filter', param='brief')
    drawn = await _draw(service, http, brief, _TRIES * body.candidates, body.seed)
    choice = await run_in_threadpool(
      desk.maker.choose,
      brief,
      drawn,
      made_by=service.name,
      count=body.candidates,
      templates=body.templates,
    )
    made = [await run_in_threadpool(desk.add, body.brief, brief, one) for one in choice.shown]
    told = {'refused': choice.refused, 'facts_unsaid': choice.unsaid}
    return reply({'object': 'list', 'data': made, **told})

  @router.post('/ads/{creative}/edit', response_model=Creative, responses=REFUSALS)
  async def edit(creative: str, body: CopyEdit) -> Any:
    """Another creative of the same brief with this copy, reviewed anew; blocked where it is wrong."""
    desk = at_desk()
    kept = await run_in_threadpool(desk.find, creative)
    brief = accept_brief(kept.said)
    copy = Copy(*(one.strip() for one in body.model_dump().values()))
    made_by = kept.record['made_by']
    by = made_by if made_by == TEMPLATE else made_by.removesuffix(_EDITED) + _EDITED
    one = Candidate(copy, by, score_copy(brief, copy))
    return reply(await run_in_threadpool(desk.add, kept.said, brief, one))

  @router.post('/ads/{creative}/decide', response_model=Creative, responses=REFUSALS)
  async def decide_on(creative: str, body: Decided) -> Any:
    """Keeps what a person decided; what did not pass its review cannot be approved."""
    kept = await run_in_threadpool(at_desk().find, creative)
    told = (kept.folder, body.state, body.by, body.note)
    record = await run_in_threadpool(_without_path, kept.folder, decide, *told)
    return reply(shown(creative, record))

  _add_files(router, at_desk)
  return router


def _add_files(router: APIRouter, at_desk: Callable[[], Desk]) -> None:
  """The routes of a creative's files."""

  @router.get('/ads/{creative}/creative.zip', response_class=Response, responses=REFUSALS | _ZIP)
  async def export(creative: str) -> Response:
    """An approved creative: its copy, pictures in every size and review."""
    data = await run_in_threadpool(at_desk().export, creative)
    named = {'Content-Disposition': f'attachment; filename="creative-{creative[:8]}.zip"'}
    return Response(data, headers=named, media_type='application/zip')

  @router.get('/ads/{creative}/{file}', response_class=Response, responses=REFUSALS | _FILES)
  async def picture(creative: str, file: str) -> Response:
    """A picture of a creative."""
    kept = await run_in_threadpool(at_desk().find, creative)
    if file not in [image['file'] for image in kept.record['images']]:
      raise ApiError(404, f'this creative has no picture {file[:40]!r}: see its images')
    data = await run_in_threadpool((kept.folder / file).read_bytes)
    return Response(data, media_type=_TYPES[file.rpartition('.')[2]])


async def _draw(
  service: Service, http: Request, brief: Brief, count: int, seed: int
) -> list[tuple[Copy, float]]:
  """Copies by the model that is served; none where it has no chat template, so templates stand alone."""
  if service.template is None:
    return []
  service.check(service.name)
  limits = limits_for(brief)
  prompt = await run_in_threadpool(service.encode_chat, copy_messages(brief, limits))
  most = service.room(len(prompt), TOKENS, 'brief')
  grammars = await run_in_threadpool(copy_grammars, service.grammars, brief, limits, count, seed)
  key, seconds = key_of(http.scope), service.limits.timeout_seconds
  asks = [
    Ask(
      *(prompt, most, Settings(SAMPLER, seed, i, constraint=one), (), ()),
      *(key.name, key.priority, seconds, one, http.scope['state']['audit']['request']),
    )
    for i, one in enumerate(grammars)
  ]
  pieces: list[list[Piece | Ended]] = [[] for _ in asks]
  async for number, event in service.answer(asks).events():
    pieces[number].append(event)
  return [found for said in pieces if (found := read_copy(said)) is not None]
