// Images: bytes as the server sends them, on canvases pixel by pixel.

const GAP = 1;

/** The bytes of a base64 text. */
export function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** The base64 text of bytes. */
export function textOf(bytes) {
  let raw = "";
  for (const byte of bytes) raw += String.fromCharCode(byte);
  return btoa(raw);
}

/** How many images stand side by side. */
export function columnsOf(n) {
  return Math.ceil(Math.sqrt(n));
}

/** Draws images on a canvas, side by side, one canvas pixel for each of theirs. */
export function paint(canvas, images) {
  const { n, shape } = images;
  const [channels, height, width] = shape;
  const bytes = bytesOf(images.pixels);
  size(canvas, n, shape);
  const context = canvas.getContext("2d");
  const across = columnsOf(n);
  for (let i = 0; i < n; i += 1) {
    const one = bytes.subarray(i * height * width * channels, (i + 1) * height * width * channels);
    context.putImageData(
      picture(one, channels, height, width),
      (i % across) * (width + GAP),
      Math.floor(i / across) * (height + GAP),
    );
  }
  canvas.dataset.painted = String(Number(canvas.dataset.painted ?? 0) + 1);
}

/** Gives a canvas the size of so many images, and empties it. */
export function size(canvas, n, shape) {
  const [, height, width] = shape;
  const across = columnsOf(n);
  const down = Math.ceil(n / across);
  const wide = across * (width + GAP) - GAP;
  const high = down * (height + GAP) - GAP;
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.aspectRatio = `${wide} / ${high}`;
    canvas.classList.toggle("coarse", width < 96);
  }
}

/** Empties a canvas of so many images. */
export function clear(canvas, n, shape) {
  size(canvas, n, shape);
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

function picture(bytes, channels, height, width) {
  const data = new ImageData(width, height);
  for (let p = 0; p < height * width; p += 1) {
    for (let c = 0; c < 3; c += 1) {
      data.data[4 * p + c] = bytes[channels * p + (channels >= 3 ? c : 0)];
    }
    data.data[4 * p + 3] = 255;
  }
  return data;
}

/** Lets the user save one image as a PNG of its exact pixels. */
export function save(images, name) {
  const canvas = document.createElement("canvas");
  paint(canvas, images);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

async function through(bytes, stream) {
  const answer = new Response(new Blob([bytes]).stream().pipeThrough(stream));
  return new Uint8Array(await answer.arrayBuffer());
}

/** Bytes as a short text that an address takes. */
export async function packed(bytes) {
  const small = await through(bytes, new CompressionStream("deflate-raw"));
  return textOf(small).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The bytes of such a text; null where it is none. */
export async function unpacked(text) {
  try {
    const small = bytesOf(text.replaceAll("-", "+").replaceAll("_", "/"));
    return await through(small, new DecompressionStream("deflate-raw"));
  } catch {
    return null;
  }
}
