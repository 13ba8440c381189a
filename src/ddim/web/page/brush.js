// The drawing area: a brush on the model's own pixels, an example, or the pixels of a file.

import { h } from "./dom.js";
import { size } from "./pictures.js";

// Strokes of examples in a square of side 1, each a list of points.
const EXAMPLES = [
  [[[0.3, 0.35], [0.36, 0.26], [0.5, 0.22], [0.64, 0.29], [0.63, 0.42], [0.5, 0.56], [0.36, 0.68],
    [0.3, 0.76], [0.44, 0.75], [0.58, 0.74], [0.7, 0.76]]],
  [[[0.33, 0.28], [0.5, 0.22], [0.63, 0.28], [0.62, 0.4], [0.48, 0.48], [0.62, 0.54], [0.66, 0.66],
    [0.56, 0.76], [0.4, 0.77], [0.31, 0.71]]],
  [[[0.31, 0.27], [0.5, 0.25], [0.68, 0.26], [0.6, 0.42], [0.52, 0.58], [0.45, 0.77]]],
  [[[0.65, 0.25], [0.4, 0.26], [0.38, 0.45], [0.55, 0.44], [0.66, 0.54], [0.64, 0.68], [0.5, 0.77],
    [0.33, 0.74]]],
];

/** The area; `changed` is called when a stroke ends or the pixels are others. */
export function brush(changed) {
  const canvas = h("canvas", { class: "picture drawing", role: "img", label: "latents.canvas" });
  let shape = [1, 28, 28];
  let ink = new Float32Array(28 * 28); // 0 to 255, where one draws
  let whole = null; // pixels of a file or a link, H × W × C, below the ink
  let last = null;
  let next = 0;

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) {
      const to = place(part);
      stroke(last, to);
      last = to;
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (!last) return;
      last = null;
      changed();
    });
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  function stroke([x1, y1], [x2, y2]) {
    const [, height, width] = shape;
    const radius = Math.max(0.8, 0.045 * Math.min(width, height));
    const parts = Math.max(1, Math.ceil(Math.hypot((x2 - x1) * width, (y2 - y1) * height) * 2));
    for (let i = 0; i <= parts; i += 1) {
      stamp((x1 + ((x2 - x1) * i) / parts) * width, (y1 + ((y2 - y1) * i) / parts) * height, radius);
    }
    show();
  }

  function stamp(x, y, radius) {
    const [, height, width] = shape;
    const reach = radius + 1;
    for (let r = Math.max(0, Math.floor(y - reach)); r < Math.min(height, y + reach); r += 1) {
      for (let c = Math.max(0, Math.floor(x - reach)); c < Math.min(width, x + reach); c += 1) {
        const away = Math.hypot(c + 0.5 - x, r + 0.5 - y);
        const value = 255 * Math.min(Math.max(radius + 0.5 - away, 0), 1);
        const at = r * width + c;
        ink[at] = Math.max(ink[at], value);
      }
    }
  }

  function pixels() {
    const [channels, height, width] = shape;
    const bytes = new Uint8Array(height * width * channels);
    for (let p = 0; p < height * width; p += 1) {
      for (let c = 0; c < channels; c += 1) {
        const at = p * channels + c;
        bytes[at] = Math.max(whole ? whole[at] : 0, Math.round(ink[p]));
      }
    }
    return bytes;
  }

  function show() {
    const [channels, height, width] = shape;
    size(canvas, 1, shape);
    const bytes = pixels();
    const data = new ImageData(width, height);
    for (let p = 0; p < height * width; p += 1) {
      for (let c = 0; c < 3; c += 1) data.data[4 * p + c] = bytes[p * channels + (channels >= 3 ? c : 0)];
      data.data[4 * p + 3] = 255;
    }
    canvas.getContext("2d").putImageData(data, 0, 0);
  }

  function empty() {
    ink = new Float32Array(shape[1] * shape[2]);
    whole = null;
  }

  return {
    canvas,
    pixels,
    /** The shape of a model's images. */
    take(given) {
      shape = given;
      empty();
      show();
    },
    clear() {
      empty();
      show();
    },
    /** Draws an example, each time another. */
    example() {
      empty();
      for (const points of EXAMPLES[next % EXAMPLES.length]) {
        for (let i = 1; i < points.length; i += 1) stroke(points[i - 1], points[i]);
      }
      next += 1;
    },
    /** Shows pixels, H × W × C; false where they are not of the model's shape. */
    put(bytes) {
      if (bytes?.length !== shape[0] * shape[1] * shape[2]) return false;
      empty();
      whole = bytes;
      show();
      return true;
    },
    get empty() {
      return !whole && ink.every((value) => value === 0);
    },
  };
}
