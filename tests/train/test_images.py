"""A generator of pictures learns coloured squares by name, and is the same when read again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lmjax.core.errors import UserError
from lmjax.data.images import encode_prompts, fit_latent, read_names, tones_in
from lmjax.generate.image import FlowSampler, sample_vectors
from lmjax.models.diffusion import Diffusion
from lmjax.objectives.flow import Flow, Vectors
from lmjax.optim.average import AveragedAdamW, find_average
from lmjax.optim.optimizer import AdamW
from lmjax.optim.schedule import Cosine
from lmjax.train.images import TrainImages, load_generator, split_pictures
from lmjax.train.picture_eval import measure, train_judges

MODEL = Diffusion(latent=8, width=32, layers=1, mlp=32, features=256, times=8)
COLOURS = ['red', 'green', 'blue', 'gold', 'teal', 'black']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  with (folder / 'pictures.jsonl').open('w') as file:
    for colour in COLOURS:
      for shape, box in [('left', (0, 0, 4, 8)), ('right', (4, 0, 8, 8)), ('top', (0, 0, 8, 4))]:
        image = Image.new('RGB', (8, 8), 'white')
        image.paste(colour, box)
        name = f'{colour}-{shape}.png'
        image.save(folder / name)
        row = {'file': name, 'prompt': f'{colour} on the {shape}', 'category': colour}
        file.write(json.dumps(row) + '\n')
  return folder


@pytest.mark.slow
def test_it_learns_and_is_read_again(folder, tmp_path):
  task = TrainImages(
    pictures=str(folder), side=8, held_out=0.0, model=MODEL, steps=300, batch=16,
    optimizer=AveragedAdamW(peak_lr=1e-2, average=0.9), sampler=FlowSampler(steps=6, guidance=2.0), judged=18,
  )  # fmt: skip
  (tmp_path / 'config.json').write_text('{}')
  report = task.run(tmp_path)
  assert report['images']['nearest_seen'] >= 0.9, report['images']
  assert report['images']['category_held_out'] is None
  generator = load_generator(str(tmp_path))
  made = generator.draw(['red on the left', 'teal on the top'], task.sampler, 1)
  of_kind = encode_prompts(['red on the left'], [['category=red']], MODEL.features)
  np.testing.assert_allclose(made[0], generator.make(*of_kind, task.sampler, 1)[0], atol=1)
  red, green, blue = made[0, 4, 1].astype(int)
  assert red - max(green, blue) > 80
  assert made.shape == (2, 8, 8, 3)
  with Image.open(tmp_path / 'grid.png') as image:
    assert image.size == (48 * 12, 48 * 2)


def test_heun_follows_a_curve_better_than_euler():
  """The exact denoiser of data N(0, 4 I): both methods must come to noise x 2, Heun sooner."""

  class Exact(Diffusion):
    def apply(self, params, noisy_BZ, time_B, features_BK, weights_BK):
      t = time_B[:, None]
      return 4.0 * t * noisy_BZ / (4.0 * t**2 + (1.0 - t) ** 2)

  noise = jnp.ones((1, 2))
  none = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1))
  errors = [
    abs(
      float(sample_vectors(Exact(latent=2), FlowSampler(method=m, steps=n), {}, noise, *none)[0, 0])
      - 2.0
    )
    for m, n in (('euler', 16), ('heun', 16), ('heun', 64))
  ]
  assert errors[2] < errors[1] < errors[0] < 0.5


def test_guidance_moves_away_from_the_unconditioned():
  class Told(Diffusion):
    def apply(self, params, noisy_BZ, time_B, features_BK, weights_BK):
      return jnp.broadcast_to(weights_BK[:, :1], noisy_BZ.shape)

  class Summed(Diffusion):
    def apply(self, params, noisy_BZ, time_B, features_BK, weights_BK):
      return jnp.broadcast_to(weights_BK.sum(axis=1, keepdims=True), noisy_BZ.shape)

  features, weights = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1))
  for guidance in (0.0, 1.0, 3.0):
    sampler = FlowSampler(steps=2, guidance=guidance)
    made = sample_vectors(Told(latent=2), sampler, {}, jnp.zeros((1, 2)), features, weights)
    np.testing.assert_allclose(made, guidance, atol=1e-6)
  two = jnp.zeros((1, 2), jnp.int32), jnp.asarray([[1.0, 4.0]])
  for attribute_guidance in (0.0, 2.0):
    sampler = FlowSampler(steps=2, guidance=3.0, attribute_guidance=attribute_guidance)
    made = sample_vectors(Summed(latent=2), sampler, {}, jnp.zeros((1, 2)), *two)
    np.testing.assert_allclose(made, 3.0 * 5.0 + attribute_guidance * 4.0, atol=1e-5)


def test_flow_adds_over_rows_and_drops_features():
  batch = Vectors(jnp.ones((4, 8)), jnp.zeros((4, 3), jnp.int32), jnp.ones((4, 3)))
  params = MODEL.init(jax.random.key(0))
  run = jax.jit(
    lambda flow, *given: flow(MODEL, *given, jax.random.key(1))[0].value, static_argnums=0
  )
  assert float(run(Flow(), params, batch)) == pytest.approx(1.0)  # the output starts at zero
  moved = jax.tree.map(lambda x: x + 0.1, params)
  batch = batch.replace(weights_BK=jnp.tile(jnp.array([4.0, 1.0, 0.5]), (4, 1)))
  untold = batch.replace(weights_BK=jnp.zeros((4, 3)))
  narrow = batch.replace(weights_BK=jnp.tile(jnp.array([4.0, 0.0, 0.0]), (4, 1)))
  whole = lambda some: float(run(Flow(drop=0.0, narrow=0.0), moved, some))
  all_dropped = run(Flow(drop=1.0, narrow=0.0), moved, batch)
  assert all_dropped == pytest.approx(whole(untold), rel=1e-6)
  assert all_dropped != pytest.approx(whole(batch), rel=1e-3)
  words_dropped = run(Flow(drop=0.0, narrow=1.0), moved, batch)
  assert words_dropped == pytest.approx(whole(narrow), rel=1e-6)
  assert words_dropped != pytest.approx(whole(batch), rel=1e-3)
  with pytest.raises(UserError, match='shares of 1 together at most'):
    Flow(drop=0.95, narrow=0.1)


def test_the_average_follows_the_parameters():
  flat = Cosine(warmup_fraction=0.0, final_fraction=1.0)
  tx = AveragedAdamW(average=0.5, weight_decay=0.0, schedule=flat).build({'w': ('norm',)}, 10)
  plain = AdamW(weight_decay=0.0, schedule=flat).build({'w': ('norm',)}, 10)
  params = other = {'w': jnp.ones(3)}
  state, plain_state, wanted = tx.init(params), plain.init(other), None
  for n in range(3):
    updates, state = tx.update({'w': jnp.ones(3)}, state, params)
    same, plain_state = plain.update({'w': jnp.ones(3)}, plain_state, other)
    params = {'w': params['w'] + updates['w']}
    other = {'w': other['w'] + same['w']}
    np.testing.assert_array_equal(params['w'], other['w'])
    d = min(0.5, n / (10 + n))
    wanted = params['w'] if wanted is None else d * wanted + (1 - d) * params['w']
  np.testing.assert_allclose(find_average(state)['w'], wanted, rtol=1e-6)


def test_pictures_come_back_from_their_components():
  pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3)).astype('u1')
  latent = fit_latent(pixels, 11, 0)
  codes = latent.encode(pixels)
  assert np.mean(codes**2) == pytest.approx(1.0, abs=1e-3)
  assert np.abs(latent.decode(codes).astype(int) - pixels).max() <= 1
  np.testing.assert_allclose(latent.basis_YZ.T @ latent.basis_YZ, np.eye(11), atol=1e-4)
  with pytest.raises(UserError, match='--model.latent=12'):
    fit_latent(pixels, 13, 0)


def test_prompts_keep_every_word_and_likeness():
  features, weights = encode_prompts(
    ['waving hand', 'wavy hands', 'red car'], [['a=1'], [], []], 2**20
  )
  rows = [
    dict(zip(f, w, strict=True)) for f, w in zip(features.tolist(), weights.tolist(), strict=True)
  ]
  alike = lambda a, b: sum(weight * b.get(f, 0.0) for f, weight in a.items() if weight)
  assert (weights[0] == 1).sum() == 2
  assert (weights[0] == 4).sum() == 1
  assert alike(rows[0], rows[1]) > alike(rows[0], rows[2])


def test_a_prompt_names_its_tone_however_it_is_written():
  assert tones_in('Waving hand, DARK skin tone') == ['dark skin tone']
  assert tones_in('medium light skin tone')[0] == 'medium-light skin tone'
  assert tones_in('moonlight skin tone') == tones_in('a red car') == []


def test_forms_of_a_concept_are_split_together(tmp_path):
  tones = ('1F3FB', '1F3FC', '1F3FD', '1F3FE', '1F3FF')
  entries = [
    {
      'name': f'{who} {job}', 'unified': f'00{i + 1}', 'short_name': 'x', 'category': 'People',
      'skin_variations': {tone: {'unified': f'{i + 1}-{tone}'} for tone in tones},
    }
    for i, (who, job) in enumerate((who, f'JOB{n}') for n in range(40) for who in ('MAN', 'WOMAN'))
  ]  # fmt: skip
  path = tmp_path / 'emoji.json'
  path.write_text(json.dumps(entries))
  files = {f'{i}.png' for i in range(1, 81)} | {
    f'{i}-{t.lower()}.png' for i in range(1, 81) for t in tones
  }
  shown = read_names(path, files)
  assert len(shown) == len(files)
  split = split_pictures(shown, 0.2)
  assert sorted([*split.train, *split.tones, *split.concepts]) == list(range(len(shown)))
  kinds = lambda numbers: {shown[i].concept for i in numbers}
  assert kinds(split.concepts)
  assert not kinds(split.concepts) & kinds([*split.train, *split.tones])
  assert {(shown[i].concept, shown[i].tone) for i in split.tones}.isdisjoint(
    (shown[i].concept, shown[i].tone) for i in split.train
  )


def test_judges_know_what_they_were_shown():
  picture = lambda tone, value: (tone, np.full((4, 4, 3), value, 'u1'))
  made = [picture(tone, value) for tone, value in [('light', 230), ('dark', 40)] * 3]
  from lmjax.data.images import Picture

  shown = [Picture('x', tone, tone, 'x', str(i)) for i, (tone, _) in enumerate(made)]
  real = np.stack([pixels for _, pixels in made])
  judges = train_judges(shown, real)
  assert measure(real, range(6), shown, real, judges)['tone'] == 1.0
  assert measure(real[::-1], range(6), shown, real, judges) == {
    'nearest': 0.0,
    'tone': 0.0,
    'category': 0.0,
  }
