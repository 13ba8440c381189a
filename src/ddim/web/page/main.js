// The shell: the views, the model, the language, the connection and the address.

import { choice, h, name, refill, sayAgain, tell } from "./dom.js";
import { addressOf, readAddress } from "./address.js";
import { ask, onConnection } from "./server.js";
import { LANGUAGES, preferred, say, speak, spoken } from "./words.js";
import { race } from "./race.js";
import { steps } from "./steps.js";
import { latents } from "./latents.js";
import { tradeoff } from "./tradeoff.js";

const PAUSE = 400; // milliseconds between two addresses

const app = { model: null, info: null, limits: {}, state: null, moved, loaded };
const entered = readAddress();
const explicit = { language: Boolean(entered.settings.lang) };
speak(entered.settings.lang ?? preferred());

const views = [race, steps, latents, tradeoff].map((make) => make(app));
const asked = {}; // by view, the settings that it has not taken yet
const links = new Map();
let shown = null;
let pending = 0; // the address that is yet to be written
let written = -PAUSE;

const language = choice(LANGUAGES.map(([code]) => [code]), {
  label: "language",
  on: { change: () => { explicit.language = true; turn(language.value); address(); } },
});
language.replaceChildren(...LANGUAGES.map(([code, text]) =>
  h("option", { value: code, lang: code }, text)));
const models = choice([], {
  label: "model",
  on: { change: () => { for (const view of views) asked[view.id] = {}; open(models.value); } },
});
const facts = h("p", { class: "facts" });
const offline = h("p", { class: "banner", role: "alert", hidden: true });
const loading = h("p", { class: "banner quiet", role: "status", hidden: true });
const foot = h("p");
const main = h("main", { id: "view", tabindex: -1 }, ...views.map((view) => view.element));

document.getElementById("page").replaceWith(
  h("a", { class: "skip", href: "#view", say: "skip",
    on: { click: (event) => { event.preventDefault(); main.focus(); } } }),
  h("header", {},
    h("div", { class: "head" },
      h("h1", {}, h("span", { say: "title" }), " ", h("small", { say: "tagline" })),
      h("div", { class: "choices" }, models, language)),
    h("nav", { label: "views" }, ...views.map((view) => {
      const link = h("a", { href: `#${view.id}`, say: `view.${view.id}` });
      links.set(view.id, link);
      return link;
    })),
    facts),
  offline, loading, main,
  h("footer", {}, foot),
);
turn(spoken());
performance.mark("interactive");

/** Speaks a language. */
function turn(code) {
  language.value = speak(code);
  sayAgain(document.body);
  document.title = say(`view.${shown?.id ?? "race"}`) + " · ddim";
  for (const view of views) view.turned?.();
}

/** Shows the view of the address, with its settings. */
function route() {
  const { view: id, settings } = readAddress();
  const view = views.find((each) => each.id === id) ?? views[0];
  const first = shown === null;
  if (settings.lang && settings.lang !== spoken()) {
    explicit.language = true;
    turn(settings.lang);
  }
  const { lang, ...own } = settings;
  if (Object.keys(own).length || !(view.id in asked)) {
    if (addressOf(view.id, own) !== addressOf(view.id, view.taken ?? {})) asked[view.id] = own;
  }
  for (const each of views) each.element.hidden = each !== view;
  for (const [key, link] of links) {
    if (key === view.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (shown && shown !== view) leave();
  shown = view;
  document.title = `${say(`view.${view.id}`)} · ddim`;
  if (!first) window.scrollTo(0, 0);
  const wanted = own.model;
  if (wanted && app.state && wanted !== app.model?.name) open(wanted);
  else give();
}

/** Gives the view what it has not taken, if the model is there. */
function give() {
  if (!app.info || !shown) return;
  if (shown.id in asked) {
    const settings = asked[shown.id];
    delete asked[shown.id];
    shown.offer(settings);
  }
  address();
}

/** A view says that its settings are others now. Browsers bear an address now and then only. */
function moved(view) {
  if (view !== shown || !app.info) return;
  const rest = written + PAUSE - performance.now();
  clearTimeout(pending);
  if (rest <= 0) address();
  else pending = setTimeout(address, rest);
}

function address() {
  if (!shown) return;
  clearTimeout(pending);
  written = performance.now();
  const settings = app.info && !(shown.id in asked) ? shown.settings : readAddress().settings;
  const { lang, ...own } = settings;
  const whole = { ...own, lang: explicit.language ? spoken() : null };
  shown.taken = given(own);
  history.replaceState(null, "", addressOf(shown.id, whole));
  for (const view of views) {
    const rest = view === shown ? whole : { ...takenBy(view), lang: whole.lang };
    links.get(view.id).href = addressOf(view.id, rest);
  }
}

/** The settings that are something. */
function given(settings) {
  return Object.fromEntries(
    Object.entries(settings).filter(([, value]) => ![null, undefined, ""].includes(value)),
  );
}

/** Keeps the settings of the view that is shown, before another is. */
function leave() {
  clearTimeout(pending);
  if (app.info && !(shown.id in asked)) shown.taken = given(shown.settings);
}

/** What a view that is not shown has taken, of the model that is open now. */
function takenBy(view) {
  const { model, ...rest } = view.taken ?? {};
  return { model: app.model?.name ?? model, ...rest };
}

/** Comes back when a model is ready; throws where it fails or the signal ends the wait. */
async function loaded(wanted, signal) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    if (signal?.aborted) throw new DOMException("", "AbortError");
    const state = await ask("/api/state").catch(() => null);
    const model = state?.models.find((each) => each.name === wanted);
    if (state) app.state = state;
    if (model && ["ready", "failed"].includes(model.phase)) return model;
  }
}

let opening = null;

/** Opens a model: waits for it, then gives it to the view. */
async function open(wanted) {
  opening?.abort();
  const controller = new AbortController();
  opening = controller;
  app.info = app.model = null;
  for (const view of views) {
    view.wait();
    if (!(view.id in asked)) asked[view.id] = view.taken ?? {};
  }
  models.value = wanted;
  tell(facts, "");
  try {
    await follow(wanted, controller.signal);
  } catch (error) {
    if (!controller.signal.aborted && error.code !== "offline") {
      banner("model.failed", { name: wanted, text: error.message });
    }
  }
}

async function follow(wanted, signal) {
  let model = app.state.models.find((each) => each.name === wanted) ?? { name: wanted };
  let info = null;
  while (!info) {
    if (model.phase === "failed") return banner("model.failed", { name: wanted, text: model.error });
    if (model.phase === "loading") {
      banner("model.loading", { name: wanted });
      model = await loaded(wanted, signal);
      continue;
    }
    try {
      info = await ask(`/api/model?model=${encodeURIComponent(wanted)}`);
      app.state = await ask("/api/state");
      model = app.state.models.find((each) => each.name === wanted);
    } catch (trouble) {
      if (!["loading", "offline"].includes(trouble.code)) throw trouble;
      banner("model.loading", { name: wanted });
      model = await loaded(wanted, signal);
    }
    if (signal.aborted) return null;
  }
  app.model = model;
  app.info = info;
  banner("");
  performance.mark("model");
  tell(facts, "facts", {
    parameters: grouped(model.parameters), shape: model.shape.join(" × "), T: model.T,
    backend: model.backend,
  });
  return give();
}

function grouped(n) {
  return n >= 1e6 ? `${(n / 1e6).toFixed(2)} M` : String(n ?? "");
}

function banner(key, values) {
  tell(loading, key, values);
  loading.hidden = !key;
  loading.dataset.phase = key;
}

onConnection((is) => {
  offline.hidden = is;
  tell(offline, is ? "" : "offline");
  if (is && app.state && !app.info) open(models.value);
});

window.addEventListener("hashchange", route);

async function begin() {
  for (;;) {
    try {
      app.state = await ask("/api/state");
      break;
    } catch (trouble) {
      if (trouble.code !== "offline") banner("status.failed", { text: trouble.message });
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
  app.limits = app.state.limits ?? {};
  tell(foot, "foot", { version: app.state.version });
  refill(models, app.state.models.map((each) => [each.name]));
  models.hidden = app.state.models.length < 2;
  const names = app.state.models.map((each) => each.name);
  const wanted = readAddress().settings.model;
  open(names.includes(wanted) ? wanted : names[0]);
}

route();
begin();
