"use strict";
// What all tabs share. The page's scripts are one: common.js, a file a tab, and start.js, in this order.

const $ = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const percent = p => p > 0 && p < 0.001 ? "< 0.1\u00a0%" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}\u00a0%`;
const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const plain = name => name.replaceAll(/[-_]+/g, " ").trim();
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const argmax = values => values.indexOf(Math.max(...values));
const still = matchMedia("(prefers-reduced-motion: reduce)"), dark = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

let saying = 0;
function say(text) {                         // to a screen reader; the last of many wins
  clearTimeout(saying);
  saying = setTimeout(() => { $("live").textContent = text; }, 350);
}

function later(work) {                       // at most once a frame, with the newest arguments: the latest wins
  let waiting = null;
  return (...given) => {
    if (!waiting) requestAnimationFrame(() => { const newest = waiting; waiting = null; work(...newest); });
    waiting = given;
  };
}

function reveal(element) {
  element.scrollIntoView({behavior: still.matches ? "auto" : "smooth", block: "nearest"});
}

function download(canvas, name) {            // as PNG
  canvas.toBlob(blob => {
    const link = el("a", {href: URL.createObjectURL(blob), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function arrow(event, step) {                // the way of an arrow key: x to the right, y down
  return {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key];
}

// A sprite: thumbnails of one size in rows, in one image file as base64. Returns cut(index, canvas).
async function sprite({side, columns, image, type}) {
  const sheet = await createImageBitmap(new Blob([bytes(image)], {type}));
  return (index, canvas = el("canvas")) => {
    canvas.width = canvas.height = side;
    canvas.getContext("2d").drawImage(
      sheet, index % columns * side, Math.floor(index / columns) * side, side, side, 0, 0, side, side);
    return canvas;
  };
}

// A list of bars: {key, name, value, tick, pressed}; with `pick`, each is a button that calls it with its key.
function bars(box, items, pick) {
  const tag = pick ? "button" : "div";
  while (box.children.length > items.length) box.lastChild.remove();
  items.forEach((item, i) => {
    let bar = box.children[i];
    if (!bar) {
      bar = el(tag, {class: "bar", ...(pick && {onclick: () => pick(bar.dataset.key)})},
        el("span", {class: "name"}), el("span", {class: "number"}),
        el("span", {class: "track"}, el("div", {class: "fill"}), el("i", {class: "tick", hidden: true})));
      box.append(bar);
    }
    bar.dataset.key = item.key ?? i;
    if (pick) bar.setAttribute("aria-pressed", String(Boolean(item.pressed)));
    const [name, number, track] = bar.children;
    name.textContent = item.name;
    number.textContent = percent(item.value);
    track.firstChild.style.width = `${100 * item.value}%`;
    track.lastChild.hidden = item.tick === undefined;
    if (item.tick !== undefined) track.lastChild.style.left = `${100 * item.tick}%`;
  });
}

const INFERNO = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
function heatColour(t) {                     // 0..1 -> [r, g, b]
  const x = clamp(t, 0, 1) * (INFERNO.length - 1), i = Math.min(INFERNO.length - 2, Math.floor(x));
  return INFERNO[i].map((from, c) => from + (x - i) * (INFERNO[i + 1][c] - from));
}

const EDGE = 0.05;                           // of a photo's side: what the network's first look leaves out

// A map h x w of values 0..1 over the part of a canvas that the network sees.
function drawHeat(context, values, h, w, opacity) {
  const small = el("canvas", {width: w, height: h}), image = new ImageData(w, h), {width, height} = context.canvas;
  values.forEach((value, i) => {
    image.data.set([...heatColour(value), 255 * opacity * Math.min(1, 1.3 * value)], 4 * i);
  });
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, EDGE * width, EDGE * height, (1 - 2 * EDGE) * width, (1 - 2 * EDGE) * height);
}

// ------------------------------------------------------ data blocks: JSON in the page, or in a file beside it

async function block(name) {                 // null where the page has none
  const script = $(`data-${name}`);
  if (!script) return null;
  if (!script.dataset.file) return JSON.parse(script.textContent);
  const answer = await fetch(script.dataset.file);
  if (!answer.ok) throw new Error(`${script.dataset.file}: ${answer.status}`);
  return answer.json();
}

// ------------------------------------------------------ the state of the view, which the address's fragment holds

const state = {};
let writing = 0;

function readState() {
  for (const key of Object.keys(state)) delete state[key];
  Object.assign(state, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
}

function remember(change) {                  // empty values are left out
  Object.assign(state, change);
  clearTimeout(writing);
  writing = setTimeout(writeState, 300);     // browsers refuse many changes in a short time
}

function fragment() {
  return `#${new URLSearchParams(Object.entries(state).filter(([, value]) => value !== "" && value !== null))}`;
}

function writeState() { history.replaceState(null, "", fragment()); }

// Says in a tab what its link does not hold, such as "your photo"; "" if nothing.
function leaveOut(name, what) { $(name).dataset.leftOut = what; }

// Numbers of the state, such as z=0.5,-1; null where there are not `n` of them.
function numbers(key, n) {
  const parts = (state[key] || "").split(","), values = parts.map(Number);
  return parts.length === n && parts.every(part => part.trim()) && values.every(Number.isFinite) ? values : null;
}

// ------------------------------------------------------ tabs

const tabs = {};                             // name -> {needs, setUp, ready: a promise of update, update}

// needs: names of blocks; without the first one there is no such tab. setUp(blocks...), when the tab is first
// shown, returns update(), which draws what `state` says: called when it is shown again and when `state` changes.
function tab(name, needs, setUp) {
  if ($(`data-${needs[0]}`)) tabs[name] = {needs, setUp, update: null, ready: null};
}

function go(name) {                          // as `show`, and the browser's way back leads to the tab before
  if (state.tab === name) return tabs[name].ready;
  writeState();
  state.tab = name;
  history.pushState(null, "", fragment());
  return show(name);
}

async function show(name) {
  $("live").textContent = "";
  for (const each of Object.keys(tabs)) {
    const button = $(`tab-${each}`), chosen = each === name;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    $(each).hidden = !chosen;
  }
  remember({tab: name});
  const shown = tabs[name], loading = $(name).querySelector(".loading");
  shown.ready ??= Promise.all(shown.needs.map(block)).then(blocks => shown.setUp(...blocks));
  try {
    shown.update = await shown.ready;
    loading.hidden = true;
    shown.update();
  } catch (error) {
    loading.textContent = location.protocol === "file:" && $(`data-${shown.needs[0]}`).dataset.file
      ? "This page reads its models from files beside it, which browsers allow only from a web server: run "
        + "`python -m http.server` in its folder, or make one file with `nestling page --out page.html`."
      : `This part of the page cannot be loaded (${error.message}); reload it, or make it anew.`;
    loading.hidden = false;
    say(loading.textContent);
  }
}
