"use strict";
// Where data come from: the server that the page was loaded from, or the file itself. Both give the same views and answers
// (view.py). All places are [y, x] in pixels of what the network saw.

const $ = (id) => document.getElementById(id);
const inside = JSON.parse($("data").textContent);

const server = {
  async known() { return ask("api/known"); },
  async view(image, model, scale) {
    const where = `image=${image}&model=${model}&scale=${scale}`;
    const found = await ask(`api/view?${where}`);
    return { ...found, picture: `api/picture?${where}` };
  },
  async answer(image, model, scale, layer, query) {
    return ask(`api/attention?image=${image}&model=${model}&scale=${scale}&layer=${layer}&query=${query}`);
  },
  async open(file) {
    const headers = { "X-Deformvit": "1", "Content-Type": "application/octet-stream" };
    return ask(`api/image?name=${encodeURIComponent(file.name || "pasted")}`, { method: "POST", body: file, headers });
  },
};

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is “deformvit explore” still running?");
  }
  const body = await reply.json().catch(() => ({ error: `the server answered with ${reply.status}` }));
  if (!reply.ok) throw new Error(body.error || `the server answered with ${reply.status}`);
  return body;
}

const file = {
  async known() { return { models: inside.models, images: inside.images.map((image, id) => ({ id: String(id), name: image.name })) }; },
  async view(image, model, scale) {
    const stored = inside.images[image].views[model];
    const view = { ...stored, picture: $(stored.picture.slice(1)).getAttribute("href") };
    if (scale === 1 || !view.scaled.length) return view;
    const near = view.scaled.reduce((a, b) => (Math.abs(b.scale - scale) < Math.abs(a.scale - scale) ? b : a));
    const layers = view.layers.map((layer, i) => ({ ...layer, deformed: near.deformed[i] }));
    return { ...view, layers, found: near.found };
  },
  async answer(image, model, scale, index, query) {
    const layer = inside.images[image].views[model].layers[index];
    const stored = layer.attention;
    if (!stored || scale !== 1) return null;
    const [height, width] = layer.map;
    const snap = (value, length) => Math.min(Math.round(value / stored.every), Math.ceil(length / stored.every) - 1);
    const row = snap(Math.floor(query / width), height), col = snap(query % width, width);
    const entry = row * Math.ceil(width / stored.every) + col;
    const heads = layer.heads, count = stored.number;
    const bytes = unpack(stored, "weights", Uint8Array), highest = unpack(stored, "highest", Float32Array);
    const range = (length) => Array.from({ length }, (_, i) => i);
    const weights = range(heads).map((m) => range(count).map(
      (n) => highest[entry * heads + m] * (bytes[(entry * heads + m) * count + n] / 255) ** 2));
    let bias = null;
    if (stored.bias) {
      const levels = unpack(stored, "bias", Uint8Array), [low, high] = stored.bias_range;
      bias = range(heads).map((m) => range(count).map((n) => low + (high - low) * levels[(entry * heads + m) * count + n] / 255));
    }
    let keys = layer.deformed || stored.shared;
    if (stored.keys) {
      const places = unpack(stored, "keys", Float32Array), sets = Math.max(...stored.set) + 1;
      keys = range(sets).map((s) => range(count).map((n) => {
        const at = 2 * ((entry * sets + s) * count + n);
        return [places[at], places[at + 1]];
      }));
    }
    const at = [layer.first[0] + row * stored.every * layer.step[0], layer.first[1] + col * stored.every * layer.step[1]];
    return { query: row * stored.every * width + col * stored.every, at, keys, set: stored.set, weights, bias };
  },
};

function unpack(stored, name, kind) {
  const ready = `${name} unpacked`;
  if (!stored[ready]) {
    const text = atob(stored[name]), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    stored[ready] = new kind(bytes.buffer);
  }
  return stored[ready];
}

const source = inside ? file : server;

