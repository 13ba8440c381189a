// The race: the same latents by several samplers, side by side, while they run.

import { choice, field, h, name, refill, tell } from "./dom.js";
import { addressOf, whole } from "./address.js";
import { labelControl, number, samplerControls, seedControl } from "./controls.js";
import { lane } from "./lanes.js";
import { Task } from "./task.js";
import { copier } from "./ways.js";

const IMAGES = 6;

/** The view. */
export function race(app) {
  const task = new Task(app);
  const seed = seedControl("seed", changed);
  const images = number("images", 1, 16, IMAGES, changed);
  const label = labelControl(true, changed);
  const sampler = samplerControls(changed);
  const calls = choice([], { on: { change: changed } });
  const callsGroup = group("race.calibrated", "calibrated", field("race.calibrated.calls", calls));
  const start = h("button", { type: "submit", class: "primary", say: "race.start", disabled: true });
  task.after = start;
  const lead = h("p", { class: "lead", say: "race.lead", with: { T: "T" } });
  const ddpm = lane("ddpm", "race.ddpm");
  const yours = lane("yours", "race.yours");
  const calibrated = lane("calibrated", "race.calibrated");
  const missing = h("p", { class: "note", say: "race.uncalibrated", hidden: true });
  const results = table();
  const link = copier(() => addressOf("race", api.settings));
  link.element.replaceChildren(...[...link.element.children].slice(2));
  const form = h(
    "form",
    { class: "controls", on: { submit: (event) => { event.preventDefault(); run(); } } },
    h("div", { class: "groups" },
      group("race.settings", "all", seed.element, images.element, label.element),
      group("race.yours", "yours", ...sampler.elements),
      callsGroup),
    h("div", { class: "actions" }, start, task.element, link.element),
  );
  const element = h(
    "section", { class: "view race" },
    h("h2", { say: "race.title" }), lead, form,
    h("div", { class: "lanes" }, ddpm.element, yours.element, calibrated.element),
    h("p", { class: "remark", say: "race.other" }), missing, results.element,
  );
  let ran = null; // the settings that the images on the page are of
  let runs = 0;

  function settings() {
    return {
      model: app.model?.name,
      seed: seed.value,
      images: images.value,
      label: label.setting,
      ...sampler.settings,
      calls: calls.value || null,
    };
  }

  function lanes() {
    const { T, calibrated: counts } = app.model;
    const all = [[ddpm, `ddpm:steps=${T}`], [yours, sampler.sampler]];
    if (counts?.length) all.push([calibrated, `calibrated:steps=${calls.value}`]);
    return all;
  }

  function reset() {
    for (const [card, text] of lanes()) card.reset(text, images.value, app.model.shape);
  }

  function changed() {
    task.cancel();
    ran = null;
    if (app.info) reset();
    task.phase("idle", runs ? "status.changed" : "");
    app.moved(api);
  }

  async function run() {
    if (!app.info) return;
    reset();
    const asked = settings();
    const cards = lanes();
    runs += 1;
    const own = runs;
    ran = asked;
    app.moved(api);
    const done = await task.run(
      "/api/race",
      {
        model: asked.model, seed: asked.seed, images: asked.images,
        labels: label.labels(asked.images), lanes: cards.map(([, text]) => text), batch_size: null,
      },
      {
        start: (data) => data.lanes.forEach((entry, i) => cards[i][0].begin(entry)),
        frame: (data) => cards[data.lane][0].show(data),
        lane: (data) => {
          cards[data.lane][0].end(data);
          results.add(own, cards[data.lane][1], data, asked);
        },
      },
    );
    if (done) element.dataset.ran = String(own);
  }

  const api = {
    id: "race",
    element,
    get settings() {
      return { ...settings(), run: ran ? 1 : null };
    },
    /** Takes a model, and the settings of an address. */
    offer(given) {
      const { T, classes, calibrated: counts } = app.model;
      tell(lead, "race.lead", { T });
      seed.value = whole(given.seed, 0, 2 ** 31 - 1, 0);
      images.value = whole(given.images, 1, app.limits.images ?? 16, IMAGES);
      images.input.max = app.limits.images ?? 16;
      label.offer(classes, given.label);
      sampler.offer(app.info, T, given);
      refill(calls, [...(counts ?? [])].sort((a, b) => b - a).map((n) => [n]));
      if (counts?.includes(Number(given.calls))) calls.value = given.calls;
      else if (counts?.includes(10)) calls.value = "10";
      callsGroup.hidden = calibrated.element.hidden = !counts?.length;
      missing.hidden = Boolean(counts?.length);
      start.disabled = false;
      ran = null;
      task.cancel();
      task.phase("idle", "");
      reset();
      if (given.run) run();
    },
    /** There is no model. */
    wait() {
      task.cancel();
      start.disabled = true;
    },
  };
  return api;
}

/** Fields that belong together. */
function group(key, kind, ...fields) {
  return h("fieldset", { class: kind }, h("legend", { say: key }),
    h("div", { class: "fields" }, ...fields));
}

/** The table of what has come to its end. */
function table() {
  const body = h("tbody");
  const empty = h("p", { class: "note", say: "race.results.empty" });
  const heads = ["race.run", "race.sampler", "calls", "seconds", "race.of", "race.link"];
  const whole = h(
    "div", { class: "scroll", hidden: true },
    h("table", {},
      h("thead", {}, h("tr", {}, ...heads.map((key) => h("th", { scope: "col", say: key })))),
      body),
  );
  return {
    element: h("section", { class: "results" }, h("h3", { say: "race.results" }), empty, whole),
    add(run, sampler, data, settings) {
      empty.hidden = true;
      whole.hidden = false;
      const restore = h("a", {
        href: addressOf("race", { ...settings, run: 1 }), say: "race.restore",
      });
      name(restore, "race.restore.label", { run, sampler });
      restore.dataset.with = JSON.stringify({ run, sampler });
      body.prepend(h("tr", {},
        h("td", {}, String(run)),
        h("th", { scope: "row", class: "spelling" }, sampler),
        h("td", { class: "number" }, String(data.calls)),
        h("td", { class: "number" }, data.seconds.toFixed(2)),
        h("td", { say: "race.of.value", with: { n: settings.images, seed: settings.seed } }),
        h("td", {}, restore)));
    },
  };
}
