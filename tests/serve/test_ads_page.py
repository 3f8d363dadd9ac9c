"""The page's Ad studio in a real Chromium: a brief, creatives, a copy that is edited, a decision, and a zip."""

import shutil
import zipfile

import pytest
from small_server import SHORT, make_service, serving

from lmjax.ads.maker import Maker, Making
from lmjax.serve.ads import Desk

playwright = pytest.importorskip('playwright.sync_api')
playwright.expect.set_options(timeout=60_000)  # ms
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium here'),
]


@pytest.fixture(scope='module')
def here(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ads')
  desk = Desk(folder / 'creatives', Maker(Making()))
  with serving(make_service(template=SHORT), folder, desk=desk) as found:
    yield found


@pytest.fixture
def page(here):
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    found = browser.new_page(accept_downloads=True)
    wrong = []
    found.on('pageerror', lambda error: wrong.append(str(error)))
    found.goto(f'{here}/#ads')
    found.locator('#product').wait_for()
    yield found
    browser.close()
    assert wrong == []


def make(page, product='Oat bread', facts='baked every morning\n750 g'):
  page.get_by_label('Product').fill(product)
  page.get_by_label('Facts that may be claimed').fill(facts)
  for size in ('1200x628', '1080x1080', '160x600'):
    page.get_by_label(size).uncheck()
  page.locator('#count').fill('2')
  page.get_by_role('button', name='Make creatives').click()


def test_a_brief_becomes_a_zip_that_a_person_approved(page, tmp_path):
  make(page)
  page.get_by_text('None is approved yet.').wait_for()
  cards = page.locator('.creative')
  playwright.expect(cards.first).to_contain_text('tiny')
  image = cards.first.locator('img')
  page.wait_for_function('node => node.naturalWidth === 300', arg=image.element_handle())
  cards.first.get_by_label('Size').select_option('728x90.png')
  page.wait_for_function('node => node.naturalWidth === 728', arg=image.element_handle())
  first = cards.first
  first.get_by_role('button', name='Approve').click()
  page.get_by_text('Say who decides first.').wait_for()
  page.get_by_label('Who decides').fill('Kim')
  assert first.get_by_role('button', name='Export zip').is_disabled()
  first.get_by_role('button', name='Approve').click()
  first.get_by_text('approved by Kim').wait_for()
  with page.expect_download() as saved:
    first.get_by_role('button', name='Export zip').click()
  saved.value.save_as(tmp_path / 'creative.zip')
  with zipfile.ZipFile(tmp_path / 'creative.zip') as archive:
    assert {'copy.json', 'review.json', '300x250.png', '728x90.svg'} <= set(archive.namelist())


def test_an_edited_copy_is_reviewed_anew(page):
  make(page)
  card = page.locator('.creative').first
  card.get_by_role('button', name='Edit').click()
  card.get_by_label('body').fill('Cures all: <img src=x onerror="window.hacked=1"> 2 kg.')
  card.get_by_role('button', name='Review again').click()
  card.get_by_text('Review: blocked').wait_for()
  playwright.expect(card).to_contain_text('figure: 2 kg')
  assert card.get_by_role('button', name='Approve').is_disabled()
  assert page.evaluate('window.hacked') is None
  card.get_by_role('button', name='Edit').click()
  card.get_by_label('body').fill('750 g of oat bread.')
  card.get_by_role('button', name='Review again').click()
  card.get_by_text('Review: passed').wait_for()
  playwright.expect(card).to_contain_text('edited by hand')


def test_a_refused_brief_says_why_and_it_fits_a_phone(page):
  make(page, product='Heroin')
  page.get_by_text('prohibited_goods').wait_for()
  playwright.expect(page.locator('.creative')).to_have_count(0)
  page.set_viewport_size({'width': 360, 'height': 640})
  assert page.evaluate('document.documentElement.scrollWidth') <= 360
