// The square between four images, and the line between two: where one is, and what is there.

import { field, h } from "./dom.js";
import { clear, paint } from "./pictures.js";
import { say as words } from "./words.js";

const STEP = 0.05;

/** The square; `moved` is called with the shares to the right and down. */
export function square(moved) {
  const dot = h("span", { class: "dot" });
  const corners = ["nw", "ne", "sw", "se"].map((place) =>
    h("canvas", { class: `corner ${place}`, "aria-hidden": "true" }));
  const element = h(
    "div",
    {
      class: "pad", role: "slider", tabindex: 0, label: "latents.pad", "aria-valuemin": 0,
      "aria-valuemax": 100, "aria-valuenow": 50,
      on: { pointerdown: hold, pointermove: drag, keydown: press },
    },
    ...corners, dot,
  );
  const said = h("p", { class: "note", "aria-hidden": "true" });
  let x = 0.5;
  let y = 0.5;

  function go(right, down, told) {
    x = Math.min(Math.max(right, 0), 1);
    y = Math.min(Math.max(down, 0), 1);
    dot.style.left = `${100 * x}%`;
    dot.style.top = `${100 * y}%`;
    say();
    if (told) moved(x, y);
  }

  function say() {
    const values = { x: Math.round(100 * x), y: Math.round(100 * y) };
    element.setAttribute("aria-valuenow", values.x);
    said.textContent = words("latents.pad.value", values);
    element.setAttribute("aria-valuetext", said.textContent);
  }

  function hold(event) {
    element.setPointerCapture(event.pointerId);
    drag(event);
  }

  function drag(event) {
    if (event.pointerType !== "mouse" && !element.hasPointerCapture(event.pointerId)) return;
    if (event.type === "pointermove" && !event.buttons) return;
    const box = element.getBoundingClientRect();
    go((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, true);
  }

  function press(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const to = { Home: [0, 0], End: [1, 1] }[event.key];
    if (!by && !to) return;
    event.preventDefault();
    if (to) go(...to, true);
    else go(x + STEP * by[0], y + STEP * by[1], true);
  }

  return {
    element,
    said,
    go,
    say,
    /** Shows the images of the corners; null where one is not there yet. */
    show(pictures, shape) {
      pictures.forEach((images, i) => (images ? paint(corners[i], images) : clear(corners[i], 1, shape)));
    },
    get place() {
      return [x, y];
    },
  };
}

/** The line between two images; `moved` is called with the share of the way. */
export function line(moved) {
  const output = h("span", { class: "value" });
  const input = h("input", {
    type: "range", min: 0, max: 1, step: 0.02, value: 0.5, on: { input: () => go(Number(input.value), true) },
  });
  const ends = [h("canvas", { class: "end", "aria-hidden": "true" }),
    h("canvas", { class: "end", "aria-hidden": "true" })];
  const element = h("div", { class: "line-field" }, field("latents.slide", input, output), ...ends);

  function go(share, told) {
    input.value = share;
    say();
    if (told) moved(Number(input.value));
  }

  function say() {
    output.textContent = words("latents.slide.share", { percent: Math.round(100 * input.value) });
    input.setAttribute("aria-valuetext", output.textContent);
  }

  return {
    element,
    go,
    say,
    show(pictures, shape) {
      pictures.forEach((images, i) => (images ? paint(ends[i], images) : clear(ends[i], 1, shape)));
    },
    get share() {
      return Number(input.value);
    },
  };
}

/** A picture with its caption. */
export function figure(key) {
  const canvas = h("canvas", { class: "picture", role: "img", label: key });
  return { canvas, element: h("figure", {}, canvas, h("figcaption", { say: key })) };
}
