// ------------------------------------------------------ digits: what is drawn in the latent plane

// A colour a digit, each of 3 : 1 or more on white; those that differ most go to the digits of the course.
const PALETTE = ["#777777", "#0072b2", "#b07800", "#857a00", "#d55e00",
  "#c566a0", "#2a94cf", "#a0522d", "#008a64", "#8a5fc7"];
const UNKNOWN = "#888888";

// A marker a digit, as a polygon or a star: corners, turn, radius, inner radius. The first ones differ most.
const MARKERS = [[12, 0, 1, 1], [4, Math.PI / 4, 1.2, 1], [3, 0, 1.4, 1], [4, 0, 1.6, 0.4], [3, Math.PI, 1.4, 1],
  [5, 0, 1.5, 0.45], [4, 0, 1.3, 1], [6, 0, 1.4, 0.5], [4, Math.PI / 4, 1.6, 0.4], [2, 0, 1.6, 0.3]];

// Steps of the likeliest component's probability: name, least value, place among the heat colours.
const CERTAINTY = [["≥\u00a099\u00a0%", 0.99, 0.2], ["≥\u00a090\u00a0%", 0.9, 0.4],
  ["≥\u00a060\u00a0%", 0.6, 0.53], ["less", 0, 0.66]];

const rgb = channels => `rgb(${channels.map(Math.round)})`;
const rounded = values => values.map(value => Number(value.toFixed(4)));         // as in the fragment
const a = digit => `${digit === 8 ? "an" : "a"} ${digit}`;
const coordinates = z => z.map(value => value.toFixed(2).replace("-", "\u2212")).join(", ");

function digitColour(digit) {                // -> [r, g, b], lighter on a dark ground
  const hex = digit < 0 ? UNKNOWN : PALETTE[digit];
  const channels = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
  return dark.matches ? channels.map(value => value + 0.3 * (255 - value)) : channels;
}

function addMarker(context, [corners, turn, outer, inner], x, y, size) {       // to the path
  for (let i = 0; i < 2 * corners; i++) {
    const angle = turn + i * Math.PI / corners;
    const radius = size * outer * (i % 2 ? (inner < 1 ? inner : Math.cos(Math.PI / corners)) : 1);
    context[i ? "lineTo" : "moveTo"](x + radius * Math.sin(angle), y - radius * Math.cos(angle));
  }
  context.closePath();
}

function drawGrey(canvas, values) {          // 784 values 0..1, white on black
  const image = new ImageData(28, 28);
  for (let i = 0; i < 784; i++) {
    const value = Math.round(255 * values[i]);
    image.data.set([value, value, value, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function classify(mixture, z) {              // the mixture's answer for a point
  const shares = mixture.responsibilities(z), k = argmax(shares);
  return {shares, digit: mixture.digits[k], share: shares[k]};
}

function componentBars(box, {digits}, shares) {
  const ordered = digits.map((digit, k) => [digit, shares[k]]).sort(([a], [b]) => a - b);
  bars(box, ordered.map(([digit, value]) => ({name: `component of the ${digit}`, value})));
}

// The contour of a normal distribution, `sigmas` standard deviations from its mean, by its Cholesky factor.
function ellipse(mean, [[a, b], [, d]], sigmas) {
  const l = Math.sqrt(a), m = b / l, n = Math.sqrt(Math.max(0, d - m * m)), points = [];
  for (let t = 0; t <= 64; t++) {
    const x = sigmas * Math.cos(t * Math.PI / 32), y = sigmas * Math.sin(t * Math.PI / 32);
    points.push([mean[0] + l * x, mean[1] + m * x + n * y]);
  }
  return points;
}

// The points in groups of one look, {name, tint, marker, rows}: by "digit", "component" or "certainty".
function groupsBy(choice, answers, labels, digits) {
  const make = (name, tint, n, is) => ({
    name, tint: rgb(tint), marker: MARKERS[n % MARKERS.length], rows: [...answers.keys()].filter(is)});
  if (choice === "certainty") {
    const step = ({share}) => CERTAINTY.findIndex(([, least]) => share >= least);
    return CERTAINTY.map(([name, , heat], n) => make(
      name, heatColour(dark.matches ? 1 - 0.7 * heat : heat), n, i => step(answers[i]) === n));
  }
  const digitOf = i => choice === "digit" ? labels[i] : answers[i].digit;
  return [...new Set([...labels, ...digits])].sort((a, b) => a - b)
    .map((digit, n) => make(
      digit < 0 ? "unknown" : String(digit), digitColour(digit), n, i => digitOf(i) === digit))
    .filter(({name, rows}) => rows.length || digits.includes(Number(name)));
}

function showLegend(groups) {
  $("legend").replaceChildren(...groups.map(({name, tint, marker}) => {
    const icon = el("canvas", {width: 32, height: 32}), context = icon.getContext("2d");
    context.fillStyle = tint;
    addMarker(context, marker, 16, 16, 9);
    context.fill();
    return el("span", {}, icon, name);
  }));
}

// ------------------------------------------------------ the part of the plane that a canvas shows

class View {
  constructor(canvas) {                      // width, height: in CSS pixels; span: of the plane, over the width
    Object.assign(this, {canvas, width: 0, height: 0, ratio: 0, x: 0, y: 0, span: 10});
  }

  get scale() { return this.width / this.span; }

  toScreen([x, y]) {
    return [this.width / 2 + (x - this.x) * this.scale, this.height / 2 - (y - this.y) * this.scale];
  }

  toPlane([x, y]) {
    return [this.x + (x - this.width / 2) / this.scale, this.y - (y - this.height / 2) / this.scale];
  }

  contains(z) {
    const [x, y] = this.toScreen(z);
    return x >= 0 && y >= 0 && x <= this.width && y <= this.height;
  }

  corners() { return [this.toPlane([0, 0]), this.toPlane([this.width, this.height])]; }

  set(x, y, span) {
    [this.x, this.y, this.span] = rounded([clamp(x, -100, 100), clamp(y, -100, 100), clamp(span, 0.2, 200)]);
  }

  frame(points) {                            // all of them, with a margin
    const [x0, x1, y0, y1] = [0, 1].flatMap(axis => {
      const values = points.map(z => z[axis]);
      return [Math.min(...values), Math.max(...values)];
    });
    this.set((x0 + x1) / 2, (y0 + y1) / 2, 1.08 * Math.max(x1 - x0, (y1 - y0) * this.width / this.height));
  }

  pan(dx, dy) { this.set(this.x - dx / this.scale, this.y + dy / this.scale, this.span); }

  zoom(factor, at) {                         // what lies at that place of the screen stays there
    const [x, y] = this.toPlane(at);
    this.set(this.x, this.y, this.span / factor);
    const [u, v] = this.toPlane(at);
    this.set(this.x + x - u, this.y + y - v, this.span);
  }

  fit() {                                    // to the canvas's size on the screen; true where that changed
    const {clientWidth, clientHeight} = this.canvas, ratio = Math.min(3, devicePixelRatio || 1);
    if (clientWidth === this.width && clientHeight === this.height && ratio === this.ratio) return false;
    Object.assign(this, {width: clientWidth, height: clientHeight, ratio});
    this.canvas.width = clientWidth * ratio;
    this.canvas.height = clientHeight * ratio;
    return true;
  }
}

// ------------------------------------------------------ what is drawn on it

function drawRegions(context, view, mixture) {       // each tinted by the component that is likeliest there
  const step = 8, width = Math.ceil(view.width / step), height = Math.ceil(view.height / step);
  const image = new ImageData(width, height), tints = mixture.digits.map(digitColour);
  for (let j = 0; j < height; j++) {
    for (let i = 0; i < width; i++) {
      const shares = mixture.responsibilities(view.toPlane([(i + 0.5) * step, (j + 0.5) * step]));
      const k = argmax(shares);
      image.data.set([...tints[k], 12 + 40 * shares[k] ** 2], 4 * (j * width + i));
    }
  }
  const small = el("canvas", {width, height});
  small.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(small, 0, 0, width * step, height * step);
}

function drawGrid(context, view) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find(each => each * view.scale > 55) || 50;
  const multiples = (from, to) => {          // of the step
    const first = Math.ceil(from / step);
    return Array.from({length: Math.floor(to / step) - first + 1}, (_, i) => (first + i) * step);
  };
  const [[left, top], [right, bottom]] = view.corners();
  const across = multiples(left, right).map(x => [x, view.toScreen([x, 0])[0]]);
  const up = multiples(bottom, top).map(y => [y, view.toScreen([0, y])[1]]);
  const label = value => value.toFixed(Math.max(0, -Math.floor(Math.log10(step)))).replace("-", "\u2212");
  context.globalAlpha = 0.45;
  context.strokeStyle = colour("--edge");
  context.lineWidth = 1;
  context.beginPath();
  for (const [, x] of across) { context.moveTo(x, 0); context.lineTo(x, view.height); }
  for (const [, y] of up) { context.moveTo(0, y); context.lineTo(view.width, y); }
  context.stroke();
  context.globalAlpha = 1;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colour("--dim");
  for (const [value, x] of across) context.fillText(label(value), x + 3, view.height - 5);
  for (const [value, y] of up) context.fillText(label(value), 4, y - 3);
}

function drawPoints(context, view, groups, z) {
  const size = clamp(2 + view.scale / 90, 2.4, 6);
  context.globalAlpha = 0.85;
  for (const {tint, marker, rows} of groups) {
    context.fillStyle = tint;
    context.beginPath();
    for (const i of rows) if (view.contains(z[i])) addMarker(context, marker, ...view.toScreen(z[i]), size);
    context.fill();
  }
  context.globalAlpha = 1;
}

function tracePath(context, view, points) {
  context.beginPath();
  points.map(z => view.toScreen(z)).forEach(([x, y], i) => i ? context.lineTo(x, y) : context.moveTo(x, y));
}

function drawText(context, text, x, y, font) {       // with a rim in the ground's colour
  context.font = `bold ${font} system-ui, sans-serif`;
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = colour("--ground");
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

function drawMixture(context, view, {digits, means, covariances}) {
  context.textAlign = "center";
  context.fillStyle = colour("--ink");
  means.forEach((mean, k) => {
    context.strokeStyle = colour("--ink");
    for (const [sigmas, width] of [[1, 2], [2, 1.2]]) {
      tracePath(context, view, ellipse(mean, covariances[k], sigmas));
      context.lineWidth = width;
      context.stroke();
    }
    const [x, y] = view.toScreen(mean);
    drawText(context, String(digits[k]), x, y + 6, "17px");
  });
}

function drawRing(context, view, z, tint, radius) {
  for (const [width, style] of [[5, colour("--ground")], [2, tint]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.beginPath();
    context.arc(...view.toScreen(z), radius, 0, 7);
    context.stroke();
  }
}

function drawWalk(context, view, ends) {
  context.strokeStyle = colour("--mark");
  context.lineWidth = 2.5;
  tracePath(context, view, ends);
  context.stroke();
  for (const end of ends) drawRing(context, view, end, colour("--mark"), 12);
}

// Where the encoder places the drawing: its mean, as a dot, and 1 and 2 standard deviations about it. Outside
// the view, an arrow at the edge.
function drawPosterior(context, view, {mu, sigma}) {
  const [x, y] = view.toScreen(mu), edge = 16;
  const u = clamp(x, edge, view.width - edge), v = clamp(y, edge, view.height - edge);
  context.strokeStyle = context.fillStyle = colour("--bad");
  context.setLineDash([5, 4]);
  context.lineWidth = 2;
  for (const sigmas of [1, 2]) {
    tracePath(context, view, ellipse(mu, [[sigma[0] ** 2, 0], [0, sigma[1] ** 2]], sigmas));
    context.stroke();
  }
  context.setLineDash([]);
  context.beginPath();
  if (view.contains(mu)) context.arc(x, y, 5, 0, 7);
  else addMarker(context, [3, Math.atan2(x - u, v - y), 1, 0.3], u, v, 13);
  context.strokeStyle = colour("--ground");
  context.stroke();
  context.fill();
  const atRight = u > view.width - 70;
  context.textAlign = atRight ? "right" : "left";
  drawText(context, "drawn", u + (atRight ? -14 : 14), clamp(v - 7, 14, view.height), "13px");
}

// ------------------------------------------------------ pointers on it

// A mouse points as it moves, and drags; a finger points, two drag and zoom. `on`: point(at), leave(), stay(at)
// after a finger's way, tap(at), drag(dx, dy), zoom(factor, at), with places on the screen.
function steer(canvas, on) {
  const down = new Map();                    // each pressed pointer's place
  let start = null, moved = false, pinched = false;        // moved, pinched: until all are lifted
  const where = event => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop];
  };
  const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

  canvas.addEventListener("pointerdown", event => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, where(event));
    if (down.size > 1) {
      pinched = true;
      on.leave();
      return;
    }
    [start, moved, pinched] = [where(event), false, false];
    if (event.pointerType === "touch") on.point(start);
  });

  canvas.addEventListener("pointermove", event => {
    const at = where(event), before = down.get(event.pointerId), finger = event.pointerType === "touch";
    if (!before) {
      if (!finger && !down.size) on.point(at);
      return;
    }
    down.set(event.pointerId, at);
    moved ||= distance(at, start) > (finger ? 10 : 5);
    if (down.size > 1) {
      const [, other] = [...down].find(([id]) => id !== event.pointerId);
      on.drag((at[0] - before[0]) / 2, (at[1] - before[1]) / 2);         // as the middle of the two
      on.zoom(distance(at, other) / Math.max(1, distance(before, other)),
        [(at[0] + other[0]) / 2, (at[1] + other[1]) / 2]);
    } else if (pinched) return;
    else if (finger) on.point(at);
    else if (moved) on.drag(at[0] - before[0], at[1] - before[1]);
  });

  canvas.addEventListener("pointerup", event => {
    if (!down.delete(event.pointerId) || down.size || pinched) return;
    if (!moved) on.tap(where(event));
    else if (event.pointerType === "touch") on.stay(where(event));
  });
  canvas.addEventListener("lostpointercapture", event => { if (down.delete(event.pointerId)) on.leave(); });
  canvas.addEventListener("pointerleave", () => { if (!down.size) on.leave(); });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const by = event.deltaY * (event.deltaMode ? 30 : 1) * (event.ctrlKey ? 4 : 1);    // ctrl: a pinched touchpad
    on.zoom(Math.exp(-clamp(by, -300, 300) / 400), where(event));
  }, {passive: false});
}
