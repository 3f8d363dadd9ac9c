// The page's frame: its places, its settings, and whether the server is ready.

import { listModels, isReady } from './api.js';
import { make } from './dom.js';
import { openSettings } from './settings.js';

// A place is a module that exports show(root, context); one more is one more line.
const PLACES = [
  { name: 'chat', title: 'Chat', module: './chat.js' },
  { name: 'search', title: 'Search', module: './search.js' },
  { name: 'ads', title: 'Ad studio', module: './ads.js' },
];

const context = { model: '', length: 0 };
const root = document.getElementById('place');
const status = document.getElementById('status');

async function show() {
  const wanted = location.hash.slice(1);
  const place = PLACES.find((each) => each.name === wanted) ?? PLACES[0];
  document.getElementById('places').replaceChildren(
    ...PLACES.map((each) =>
      make('a', { href: `#${each.name}`, 'aria-current': each === place ? 'page' : null }, each.title),
    ),
  );
  root.replaceChildren();
  (await import(place.module)).show(root, context);
}

async function start() {
  document.getElementById('open-settings').addEventListener('click', () => openSettings());
  for (let wait = 0; !(await isReady()); wait++) {
    status.textContent = `The model is being made ready ${'.'.repeat(1 + (wait % 3))}`;
    await new Promise((done) => setTimeout(done, 1000));
  }
  await readModel();
  window.addEventListener('hashchange', show);
  await show();
}

async function readModel() {
  try {
    const [model] = await listModels();
    [context.model, context.length] = [model.id, model.context_length];
    status.textContent = model.id;
  } catch (error) {
    status.textContent = error.message;
    if (error.status === 401) {
      await openSettings();
      await readModel();
    }
  }
}

start();
