// Latents: an image to its noise and back, then towards another and between four.

import { choice, field, h, refill, tell } from "./dom.js";
import { addressOf, share, whole } from "./address.js";
import { brush } from "./brush.js";
import { labelControl, seedControl, stepsSlider } from "./controls.js";
import { scientific } from "./equation.js";
import { figure, line, square } from "./pad.js";
import { bytesOf, clear, packed, paint, save, textOf, unpacked } from "./pictures.js";
import { Newest, Task, once } from "./task.js";
import { copier } from "./ways.js";

const STEPS = 20;
const LINK = 6000; // letters of an image in a link

/** The view. */
export function latents(app) {
  const task = new Task(app);
  const drawing = brush(drawn);
  const codec = choice([], { on: { change: resettle } });
  const count = stepsSlider("steps", resettle);
  const label = labelControl(false, resettle);
  const others = seedControl("latents.others", resettle);
  const encodeButton = h("button", { type: "button", class: "primary", say: "latents.encode", disabled: true, on: { click: prepare } });
  task.after = encodeButton;
  const file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", class: "off", tabindex: -1, "aria-hidden": "true", on: { change: () => take(file.files[0]) } });
  const shown = Object.fromEntries(["given", "latent", "decoded"].map((key) => [key, figure(`latents.${key}`)]));
  const exact = h("p", { class: "note", role: "status" });
  const deviation = h("p", { class: "note" });
  const saver = h("button", { type: "button", class: "small", say: "latents.save", disabled: true, on: { click: () => save(mine.given, "drawn.png") } });
  const link = () => addressOf("latents", api.settings);
  const waysOf = { encode: copier(link), slide: copier(link), pad: copier(link) };
  waysOf.encode.element.append(saver);
  const slide = line(() => { decode("slide"); app.moved(api); });
  const pad = square(() => { decode("pad"); app.moved(api); });
  const between = { slide: figure("latents.slide.picture"), pad: figure("latents.pad.picture") };
  const live = Object.fromEntries(["slide", "pad"].map((key) => [key, new Newest(app, trouble)]));
  const element = h(
    "section", { class: "view latents" },
    h("h2", { say: "latents.title" }), h("p", { class: "lead", say: "latents.lead" }),
    h("div", { class: "studio" },
      h("div", { class: "easel", on: { dragover: over, drop } }, drawing.canvas,
        h("div", { class: "row" },
          button("latents.clear", () => { drawing.clear(); forget(); drawn(); }),
          button("latents.example", () => { drawing.example(); drawn(); }),
          button("latents.seeded", seeded),
          button("latents.file", () => file.click()), file),
        h("p", { class: "note", say: "latents.drop" })),
      h("div", { class: "outcome" },
        h("div", { class: "fields" }, field("latents.codec", codec), count.element, others.element, label.element),
        h("div", { class: "actions" }, encodeButton, task.element),
        h("div", { class: "panels three" }, ...Object.values(shown).map((each) => each.element)),
        exact, deviation, waysOf.encode.element)),
    h("section", { class: "between" },
      h("h3", { say: "latents.slide.title" }), h("p", { class: "note", say: "latents.slide.lead" }),
      h("div", { class: "pair" }, slide.element, between.slide.element), waysOf.slide.element),
    h("section", { class: "between" },
      h("h3", { say: "latents.pad.title" }), h("p", { class: "note", say: "latents.pad.lead" }),
      h("div", { class: "pair" }, h("div", {}, pad.element, pad.said), between.pad.element),
      waysOf.pad.element),
  );
  let mine = null; // what encoding the drawing gave
  let rest = []; // images of the seed, with their latents
  let image = ""; // the drawing in an address
  let next = 4; // the seed's next image that the drawing may take
  let round = new AbortController();
  let mended = false;

  function button(key, click) {
    return h("button", { type: "button", class: "small", say: key, on: { click } });
  }

  function over(event) {
    event.preventDefault();
  }

  function drop(event) {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  }

  function trouble(problem) {
    if (problem.code === "not-found" && !mended) {
      mended = true; // the server has forgotten them: all are made anew, once
      rest = [];
      prepare();
    } else task.fail(problem);
  }

  function forget() {
    round.abort();
    task.cancel();
    for (const each of Object.values(live)) each.stop();
    mine = null;
    for (const each of [...Object.values(shown), ...Object.values(between)]) {
      clear(each.canvas, 1, app.model.shape);
    }
    for (const each of Object.values(waysOf)) each.give(null);
    saver.disabled = true;
    tell(exact, "");
    tell(deviation, "");
    element.removeAttribute("data-encoded");
  }

  async function drawn() {
    if (!app.info) return;
    await noted();
    prepare();
  }

  /** Lets addresses have the drawing, if it is not too long for them. */
  async function noted() {
    const text = drawing.empty ? "" : await packed(drawing.pixels());
    image = text.length > LINK ? "" : text;
  }

  function resettle() {
    rest = [];
    if (app.info) prepare();
  }

  async function take(given) {
    if (!given || !app.info) return;
    const limit = app.limits.upload_bytes ?? 1_000_000;
    if (given.size > limit) {
      task.phase("failed", "latents.toobig", { limit: limit / 1e6 });
      return;
    }
    const bytes = new Uint8Array(await given.arrayBuffer());
    file.value = "";
    prepare({ png: textOf(bytes) });
  }

  async function seeded() {
    if (!app.info) return;
    try {
      const done = await once(app, "/api/draw-latents", body({ seed: others.value, image: next }));
      next += 1;
      drawing.put(bytesOf(done.decoded.pixels));
      drawn();
    } catch (problem) {
      task.fail(problem);
    }
  }

  function body(more) {
    return { model: app.model.name, codec: codec.value, steps: count.value, label: label.labels(1)?.[0] ?? null, ...more };
  }

  /** Encodes what is drawn or given, draws the other corners, decodes between them. */
  async function prepare(given) {
    if (!app.info) return;
    forget();
    app.moved(api);
    round = new AbortController();
    const { signal } = round;
    const source = given ?? (drawing.empty ? null : { pixels: textOf(drawing.pixels()) });
    if (source) {
      const done = await task.run("/api/encode", body({ image: source }), {
        frame: (data) => paint(shown.latent.canvas, data.state),
      });
      if (signal.aborted || !done) return;
      if (given) {
        drawing.put(bytesOf(done.given.pixels));
        await noted();
        if (signal.aborted) return;
      }
      encoded(done);
    } else task.phase("idle", "latents.empty");
    try {
      await corners(signal);
    } catch (problem) {
      if (!signal.aborted) trouble(problem);
    }
    app.moved(api);
  }

  function encoded(done) {
    mine = done;
    paint(shown.given.canvas, done.given);
    paint(shown.latent.canvas, done.latents);
    paint(shown.decoded.canvas, done.decoded);
    tell(exact, done.pixels_equal ? "latents.exact" : "latents.inexact", { difference: scientific(done.difference) });
    tell(deviation, "latents.std", { std: Number(done.std).toFixed(2) });
    waysOf.encode.give(done.ways);
    saver.disabled = false;
    element.dataset.encoded = done.pixels_equal ? "exact" : "inexact";
  }

  async function corners(signal) {
    for (let i = rest.length; i < (mine ? 3 : 4); i += 1) {
      const done = await once(app, "/api/draw-latents", body({ seed: others.value, image: i }), signal);
      if (signal.aborted) return;
      rest.push(done);
      show();
    }
    show();
    decode("slide");
    decode("pad");
  }

  /** The corners: the drawing, or the seed's fourth image in its place, then the seed's first three. */
  function four() {
    return [mine ?? rest[3] ?? null, rest[0] ?? null, rest[1] ?? null, rest[2] ?? null];
  }

  function show() {
    const pictures = four().map((each) => each?.decoded ?? null);
    pad.show(pictures, app.model.shape);
    slide.show(pictures.slice(0, 2), app.model.shape);
  }

  function decode(key) {
    const all = key === "pad" ? four() : four().slice(0, 2);
    if (!app.info || all.some((each) => !each)) return;
    const asked = {
      model: app.model.name, latents: all.map((each) => each.latent), frames: null,
      shares: key === "pad" ? pad.place : [slide.share],
    };
    delete between[key].canvas.dataset.shares;
    live[key].want("/api/decode", asked, (done) => {
      mended = false;
      paint(between[key].canvas, done.images);
      between[key].canvas.dataset.shares = asked.shares.join(" ");
      waysOf[key].give(done.ways);
    });
  }

  const api = {
    id: "latents",
    element,
    get settings() {
      const [x, y] = pad.place;
      return {
        model: app.model?.name, codec: codec.value, steps: count.value, others: others.value,
        label: label.setting, share: slide.share, x: x.toFixed(3), y: y.toFixed(3), image: image || "none",
      };
    },
    /** Takes a model, and the settings of an address. */
    async offer(given) {
      const { T, shape, classes } = app.model;
      const defaults = app.info.defaults ?? {};
      refill(codec, app.info.codecs.map((each) => [each]));
      codec.value = app.info.codecs.includes(given.codec) ? given.codec : defaults.codec ?? app.info.codecs[0];
      count.offer(T, whole(given.steps, 1, T, Math.min(defaults.codec_steps ?? STEPS, T)));
      label.offer(classes, given.label);
      others.value = whole(given.others, 0, 2 ** 31 - 1, 0);
      slide.go(share(given.share, 0.5), false);
      pad.go(share(given.x, 0.5), share(given.y, 0.5), false);
      drawing.take(shape);
      rest = [];
      forget();
      show();
      encodeButton.disabled = false;
      image = given.image === "none" ? "" : given.image ?? "";
      if (!given.image) drawing.example();
      else if (image) drawing.put(await unpacked(image));
      drawn();
    },
    /** There is no model. */
    wait() {
      round.abort();
      task.cancel();
      for (const each of Object.values(live)) each.stop();
      task.phase("idle", "");
      encodeButton.disabled = true;
    },
    /** The language is another. */
    turned() {
      slide.say();
      pad.say();
    },
  };
  return api;
}
