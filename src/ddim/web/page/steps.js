// One step, opened: state, both predictions, the place on the schedule and the row's numbers.

import { h, name, tell } from "./dom.js";
import { addressOf, whole } from "./address.js";
import { labelControl, number, samplerControls, seedControl } from "./controls.js";
import { curve } from "./curve.js";
import { equation } from "./equation.js";
import { clear, paint } from "./pictures.js";
import { Task } from "./task.js";
import { copier } from "./ways.js";

const PAUSE = 120; // milliseconds between frames while it plays
const SETTLE = 250; // milliseconds without a change before a change is run

/** The view. */
export function steps(app) {
  const task = new Task(app);
  const seed = seedControl("seed", changed);
  const image = number("image", 0, 9999, 0, changed);
  const label = labelControl(false, changed);
  const sampler = samplerControls(changed);
  const position = h("p", { class: "position", say: "steps.empty" });
  const slider = h("input", {
    type: "range", min: 0, max: 0, value: 0, disabled: true, label: "steps.slider",
    on: { input: () => { pause(); look(Number(slider.value)); app.moved(api); } },
  });
  const play = h("button", { type: "button", say: "steps.play", disabled: true, on: { click: toggle } });
  task.after = slider;
  const shown = Object.fromEntries(["state", "x0", "eps", "final"].map((key) => [key, panel(key)]));
  const schedule = curve();
  const sums = equation();
  const ways = copier(() => addressOf("steps", api.settings));
  const element = h(
    "section", { class: "view steps" },
    h("h2", { say: "steps.title" }), h("p", { class: "lead", say: "steps.lead" }),
    h("form", { class: "controls", on: { submit: (event) => event.preventDefault() } },
      h("h3", { class: "hidden", say: "steps.settings" }),
      h("div", { class: "fields" }, seed.element, image.element, label.element,
        ...sampler.elements),
      h("div", { class: "actions" }, task.element, ways.element)),
    h("div", { class: "time" }, play, slider, position),
    h("div", { class: "panels" }, ...Object.values(shown).map((each) => each.element)),
    h("section", {}, h("h3", { say: "steps.curve" }), schedule.element),
    sums.element,
  );
  let frames = [];
  let wanted = 0; // the step that a link asks for
  let timer = null;
  let playing = null;

  function changed() {
    clearTimeout(timer);
    pause();
    app.moved(api);
    timer = setTimeout(run, SETTLE);
  }

  async function run() {
    clearTimeout(timer);
    if (!app.info) return;
    frames = [];
    ways.give(null);
    slider.disabled = play.disabled = true;
    element.removeAttribute("data-frames");
    const done = await task.run(
      "/api/steps",
      {
        model: app.model.name, seed: seed.value, image: image.value,
        label: label.labels(1)?.[0] ?? null, sampler: sampler.sampler,
      },
      {
        start: (data) => schedule.mark(data.nodes.filter((k) => k !== null)),
        frame: (data) => {
          frames.push(data);
          slider.max = frames.length - 1;
          if (frames.length - 1 <= wanted) look(frames.length - 1);
        },
      },
    );
    if (!done) return;
    paint(shown.final.canvas, done.image);
    ways.give(done.ways);
    slider.disabled = play.disabled = false;
    look(Math.min(wanted, frames.length - 1));
    element.dataset.frames = String(frames.length);
    app.moved(api);
  }

  function look(i) {
    const frame = frames[i];
    if (!frame) return;
    if (!slider.disabled) wanted = i;
    slider.value = i;
    for (const key of ["state", "x0", "eps"]) {
      if (frame[key]) paint(shown[key].canvas, frame[key]);
      else clear(shown[key].canvas, 1, app.model.shape);
    }
    const [from, to] = [frame.node ?? "…", frame.to.node ?? "…"];
    const values = { step: i + 1, total: frames.length, from, to };
    tell(position, "steps.position", values);
    slider.setAttribute("aria-valuetext", position.textContent);
    shown.state.call({ node: from });
    schedule.point(frame);
    sums.show(frame);
  }

  function toggle() {
    if (playing) return pause();
    if (Number(slider.value) >= frames.length - 1) look(0);
    playing = setInterval(() => {
      if (Number(slider.value) >= frames.length - 1) return pause();
      return look(Number(slider.value) + 1);
    }, PAUSE);
    return tell(play, "steps.pause");
  }

  function pause() {
    if (!playing) return;
    clearInterval(playing);
    playing = null;
    tell(play, "steps.play");
    app.moved(api);
  }

  const api = {
    id: "steps",
    element,
    get settings() {
      return {
        model: app.model?.name, seed: seed.value, image: image.value, label: label.setting,
        ...sampler.settings, at: wanted,
      };
    },
    /** Takes a model, and the settings of an address. */
    offer(given) {
      const { T, classes, shape } = app.model;
      seed.value = whole(given.seed, 0, 2 ** 31 - 1, 0);
      image.value = whole(given.image, 0, 9999, 0);
      label.offer(classes, given.label);
      sampler.offer(app.info, T, { steps: String(Math.min(20, T)), ...given });
      wanted = whole(given.at, 0, 10 ** 6, 0);
      for (const each of Object.values(shown)) clear(each.canvas, 1, shape);
      schedule.take(app.info.schedule);
      run();
    },
    /** There is no model. */
    wait() {
      clearTimeout(timer);
      pause();
      task.cancel();
      task.phase("idle", "");
      slider.disabled = play.disabled = true;
    },
    /** The language is another. */
    turned() {
      schedule.draw();
      if (frames.length) slider.setAttribute("aria-valuetext", position.textContent);
    },
  };
  return api;
}

function panel(key) {
  const canvas = h("canvas", { class: "picture", role: "img", label: `steps.${key}`, with: { node: "T" } });
  const caption = h("figcaption", { say: `steps.${key}`, with: { node: "T" } });
  return {
    canvas,
    element: h("figure", { class: key }, canvas, caption),
    call(values) {
      name(canvas, `steps.${key}`, values);
      tell(caption, `steps.${key}`, values);
    },
  };
}
