// Runs after nets.js in a worker: holds the network, and answers {id, what, ...} by {id, answer}.
"use strict";
let net = null;

// pixels: the squashed photo. cover: a rectangle of it, [left, top, right, bottom] in pixels, that is made grey.
function covered(pixels, cover) {
  if (!cover) return pixels;
  const [left, top, right, bottom] = cover, rgb = pixels.slice();
  for (let y = top; y < bottom; y++) rgb.fill(128, 3 * (y * net.stored + left), 3 * (y * net.stored + right));
  return rgb;
}

const answers = {
  model: ({model}) => { net = Nets.bird(model); },
  squash: ({rgb, width, height}) => net.squash(rgb, width, height),
  look: ({pixels, cover}) => net.look(covered(pixels, cover)),
  predict: ({pixels}) => net.predict(pixels),
};

onmessage = ({data}) => {
  try {
    postMessage({id: data.id, answer: answers[data.what](data)});
  } catch (error) {
    postMessage({id: data.id, error: String(error)});
  }
};
