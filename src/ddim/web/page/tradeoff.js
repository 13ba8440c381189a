// What each saved step costs: the plot of `ddim evaluate`, and samples of its points.

import { h, name, tell } from "./dom.js";
import { addressOf, whole } from "./address.js";
import { seedControl } from "./controls.js";
import { lane } from "./lanes.js";
import { plot, values } from "./plot.js";
import { ask } from "./server.js";
import { Task } from "./task.js";
import { copier } from "./ways.js";

const IMAGES = 9;

/** The view. */
export function tradeoff(app) {
  const task = new Task(app);
  const chart = plot(open);
  const seed = seedControl("seed", () => (chosen ? open(chosen) : app.moved(api)));
  const samples = lane("point", "tradeoff.open");
  const command = h("pre", { tabindex: 0, role: "group", label: "copy.command" });
  const none = h("div", { hidden: true }, h("p", { say: "tradeoff.none" }), command);
  const metric = h("p", { class: "axis" });
  const remark = h("p", { class: "note" });
  const ways = copier(() => addressOf("tradeoff", api.settings));
  const invitation = h("p", { class: "note", say: "tradeoff.choose" });
  const body = h("tbody");
  const valueHead = h("th", { scope: "col", say: "tradeoff.value" });
  const figure = h(
    "div", { class: "evaluated", hidden: true },
    h("div", {}, metric, chart.element, chart.legend, remark, ways.element),
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
    state, none, figure, numbers,
  );
  let data = null;
  let chosen = null;

  async function open(point) {
    chosen = point;
    chart.choose(point);
    for (const row of body.rows) row.classList.toggle("chosen", row.point === point);
    app.moved(api);
    samples.element.hidden = false;
    invitation.hidden = true;
    samples.reset(point.sampler, IMAGES, app.model.shape);
    tell(samples.title, "tradeoff.samples", { sampler: point.label });
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

  function show(given) {
    data = given;
    const there = Boolean(given.points?.length);
    none.hidden = there;
    figure.hidden = numbers.hidden = !there;
    command.textContent = given.command ?? "";
    ways.give(given.ways ?? null);
    if (!there) return;
    metric.textContent = given.metric;
    tell(valueHead, "");
    valueHead.textContent = given.metric;
    delete valueHead.dataset.say;
    remark.textContent = given.note ?? "";
    chart.take(given);
    body.replaceChildren(...given.points.map(rowOf));
  }

  function rowOf(point) {
    const button = h("button", { type: "button", class: "small", say: "tradeoff.open", on: { click: () => open(point) } });
    name(button, "tradeoff.open.label", values(point, data.metric));
    const row = h("tr", {},
      h("th", { scope: "row" }, point.label, h("br"), h("span", { class: "spelling" }, point.sampler)),
      h("td", { class: "number" }, String(point.calls)),
      h("td", { class: "number" }, String(point.value)),
      h("td", { class: "number" }, point.seconds ? Number(point.seconds).toFixed(2) : "–"),
      h("td", {}, button));
    row.point = point;
    return row;
  }

  const api = {
    id: "tradeoff",
    element,
    get settings() {
      return {
        model: app.model?.name, seed: seed.value,
        open: chosen?.sampler ?? null,
      };
    },
    /** Takes a model, and the settings of an address. */
    async offer(given) {
      seed.value = whole(given.seed, 0, 2 ** 31 - 1, 0);
      task.phase("idle", "");
      chosen = null;
      invitation.hidden = false;
      samples.element.hidden = true;
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
      const point = data.points?.find((each) => each.sampler === given.open);
      if (point) open(point);
      element.dataset.shown = data.points?.length ? "points" : "none";
    },
    /** There is no model. */
    wait() {
      task.cancel();
      task.phase("idle", "");
      element.removeAttribute("data-shown");
    },
    /** The language is another. */
    turned() {
      chart.draw();
    },
  };
  return api;
}
