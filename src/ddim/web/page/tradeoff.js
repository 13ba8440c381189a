// What each saved step costs: the plot of `ddim evaluate`, and samples of its points.

import { h, name, tell } from "./dom.js";
import { addressOf, whole } from "./address.js";
import { seedControl } from "./controls.js";
import { lane } from "./lanes.js";
import { metricOf, plot, rounded, values } from "./plot.js";
import { ask } from "./server.js";
import { Task } from "./task.js";
import { copier } from "./ways.js";

const IMAGES = 9;
const MEASURED = 16; // latents

/** The view. */
export function tradeoff(app) {
  const task = new Task(app);
  const measuring = new Task(app);
  const chart = plot(open);
  const measureButton = h("button", { type: "button", say: "tradeoff.measure", disabled: true, on: { click: measure } });
  measuring.after = measureButton;
  const seed = seedControl("seed", () => (chosen ? open(chosen) : app.moved(api)));
  const samples = lane("point", "tradeoff.samples");
  const command = h("pre", { tabindex: 0, role: "group", label: "copy.command" });
  const none = h("div", { hidden: true }, h("p", { say: "tradeoff.none" }), command);
  const metric = h("p", { class: "axis" });
  const remark = h("p", { class: "note" });
  const note = h("p", { class: "note", lang: "en" });
  const ways = copier(() => addressOf("tradeoff", api.settings));
  const invitation = h("p", { class: "note", say: "tradeoff.choose" });
  const body = h("tbody");
  const valueHead = h("th", { scope: "col" });
  const figure = h(
    "div", { class: "evaluated", hidden: true },
    h("div", {}, metric, chart.element, chart.legend, remark, note, ways.element),
    h("div", { class: "opened" }, seed.element, invitation, task.element, samples.element),
  );
  const numbers = h(
    "section", { class: "numbers", hidden: true },
    h("h3", { say: "tradeoff.table" }),
    h("div", { class: "scroll" },
      h("table", {},
        h("thead", {}, h("tr", {},
          h("th", { scope: "col", say: "race.sampler" }), h("th", { scope: "col", say: "calls" }),
          valueHead, h("th", { scope: "col", say: "seconds" }),
          h("th", { scope: "col", say: "race.link" }))),
        body)),
  );
  samples.element.hidden = true;
  const state = h("p", { class: "status", role: "status" });
  const element = h(
    "section", { class: "view tradeoff" },
    h("h2", { say: "tradeoff.title" }), h("p", { class: "lead", say: "tradeoff.lead" }),
    state, none, h("div", { class: "actions" }, measureButton, measuring.element), figure, numbers,
  );
  let data = null;
  let chosen = null;
  let measured = null; // the seed of what was measured here

  async function open(point) {
    if (!point.sampler) return;
    chosen = point;
    mark();
    app.moved(api);
    samples.element.hidden = false;
    invitation.hidden = true;
    samples.reset(point.sampler, IMAGES, app.model.shape);
    const { classes } = app.model;
    await task.run(
      "/api/race",
      {
        model: app.model.name, seed: seed.value, images: IMAGES, batch_size: null,
        labels: classes ? Array.from({ length: IMAGES }, (_, i) => i % classes) : null,
        lanes: [point.sampler],
      },
      {
        start: (data) => samples.begin(data.lanes[0]), frame: samples.show, lane: samples.end,
      },
    );
  }

  /** Measures a few samplers now; the points come one after another. */
  async function measure() {
    const own = seed.value;
    const points = [];
    chosen = null;
    const done = await measuring.run(
      "/api/tradeoff",
      { model: app.model.name, seed: own, images: MEASURED },
      {
        point: (data) => {
          points.push(data);
          show({ points: [...points], metric: data.unit, source: "measured" }, own);
        },
      },
    );
    if (!done) return;
    measured = own;
    show(done, own);
    app.moved(api);
  }

  function show(given, own) {
    data = given;
    const there = Boolean(given.points?.length);
    none.hidden = there;
    figure.hidden = numbers.hidden = !there;
    command.textContent = given.command ?? "";
    ways.give(given.ways ?? (given.command ? { command: given.command } : null));
    if (!there) return;
    metric.textContent = valueHead.textContent = metricOf(given);
    tell(remark, `tradeoff.source.${given.source}`, { seed: own });
    note.textContent = given.note ?? "";
    chart.take(given);
    body.replaceChildren(...given.points.map(rowOf));
    element.dataset.shown = given.source;
  }

  function mark() {
    chart.choose(chosen);
    for (const row of body.rows) row.classList.toggle("chosen", row.point === chosen);
  }

  function rowOf(point) {
    const button = h("button", {
      type: "button", class: "small", say: "tradeoff.open", disabled: !point.sampler,
      on: { click: () => open(point) },
    });
    name(button, "tradeoff.open.label", values(point));
    const row = h("tr", {},
      h("th", { scope: "row", class: "spelling" }, point.sampler ?? point.label),
      h("td", { class: "number" }, String(point.calls)),
      h("td", { class: "number" }, rounded(point.value)),
      h("td", { class: "number" }, point.seconds ? Number(point.seconds).toFixed(3) : "–"),
      h("td", {}, button));
    row.point = point;
    return row;
  }

  const api = {
    id: "tradeoff",
    element,
    get settings() {
      return {
        model: app.model?.name, seed: seed.value, measured, open: chosen?.sampler ?? null,
      };
    },
    /** Takes a model, and the settings of an address. */
    async offer(given) {
      seed.value = whole(given.seed, 0, 2 ** 31 - 1, 0);
      task.phase("idle", "");
      measuring.phase("idle", "");
      chosen = measured = null;
      invitation.hidden = false;
      samples.element.hidden = true;
      measureButton.disabled = false;
      tell(state, "status.asking");
      const wanted = app.model.name;
      try {
        const answer = await ask(`/api/tradeoff?model=${encodeURIComponent(wanted)}`);
        if (app.model?.name !== wanted) return;
        tell(state, "");
        show(answer);
      } catch (trouble) {
        const key = trouble.code === "offline" ? "status.offline" : "status.failed";
        tell(state, key, { text: trouble.message });
        return;
      }
      if (!data.points?.length) element.dataset.shown = "none";
      if (given.measured !== undefined) {
        const own = seed.value;
        seed.value = whole(given.measured, 0, 2 ** 31 - 1, 0);
        const measures = measure();
        seed.value = own;
        await measures;
      }
      const point = data.points?.find((each) => each.sampler && each.sampler === given.open);
      if (point) open(point);
    },
    /** There is no model. */
    wait() {
      for (const each of [task, measuring]) {
        each.cancel();
        each.phase("idle", "");
      }
      measureButton.disabled = true;
      element.removeAttribute("data-shown");
    },
    /** The language is another. */
    turned() {
      chart.draw();
      if (data?.points) metric.textContent = valueHead.textContent = metricOf(data);
    },
  };
  return api;
}
