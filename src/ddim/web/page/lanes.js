// A lane of the race: its images, its clock, and how to get them elsewhere.

import { fresh, h, name, tell } from "./dom.js";
import { clear, paint } from "./pictures.js";
import { copier } from "./ways.js";

/** A lane; `kind` gives its colour, `key` its heading. */
export function lane(kind, key) {
  const id = fresh("lane");
  const title = h("h3", { say: key, id });
  const spelling = h("p", { class: "spelling" });
  const canvas = h("canvas", { class: "picture", role: "img" });
  const bar = h("progress", { max: 1, value: 0 });
  const calls = h("span", { class: "calls" }, "–");
  const seconds = h("span", { class: "seconds" }, "–");
  const ways = copier(null, id);
  const element = h(
    "section",
    { class: `lane ${kind}`, "aria-labelledby": id },
    title, spelling, canvas, bar,
    h("p", { class: "counters" }, calls, seconds),
    ways.element,
  );
  let sampler = "";
  let total = 1;

  function count(made, past) {
    bar.max = total;
    bar.value = made;
    tell(calls, "race.calls", { calls: made, total });
    tell(seconds, "race.seconds", { seconds: past.toFixed(2) });
  }

  function show({ calls: made, seconds: past, images }) {
    element.dataset.phase = "running";
    count(made, past);
    if (!images) return;
    paint(canvas, images);
    if (canvas.dataset.label !== "race.picture") {
      name(canvas, "race.picture", { sampler, n: images.n });
    }
  }

  return {
    element,
    title,
    /** Begins to run, with so many network calls before it. */
    begin({ calls: all }) {
      total = all;
      count(0, 0);
    },
    /** How far it has come; the images are there in some of the frames. */
    show,
    /** Stands at the start with a sampler, its images still to come. */
    reset(text, n, shape) {
      sampler = text;
      spelling.textContent = text;
      clear(canvas, n, shape);
      name(canvas, "race.picture.empty", { sampler });
      name(bar, "race.progress", { sampler });
      bar.value = 0;
      calls.textContent = "–";
      seconds.textContent = "–";
      delete calls.dataset.say;
      delete seconds.dataset.say;
      element.dataset.phase = "idle";
      ways.give(null);
    },
    /** Has come to its end. */
    end({ calls: made, seconds: past, images, ways: given }) {
      total = made;
      show({ calls: made, seconds: past, images });
      element.dataset.phase = "done";
      ways.give(given);
    },
  };
}
