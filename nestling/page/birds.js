// ------------------------------------------------------ birds: photos in, species and heat maps out

const MOST_PHOTOS = 100, HEAT = 65;          // photos at a time; opacity of the heat map at first, in per cent
const CLOSE = 0.7;                           // of the photo's side: what the second look sees

// The network in a worker: returns ask(what, given), a promise of its answer.
function startWorker(model, failed) {
  const source = new Blob([$("nets").textContent, $("worker").textContent], {type: "text/javascript"});
  const worker = new Worker(URL.createObjectURL(source)), asked = new Map();
  let serial = 0, dead = "";
  worker.onerror = event => {
    event.preventDefault();
    dead = event.message || "its worker has ended";
    for (const [, refused] of asked.values()) refused(dead);
    failed(dead);
  };
  worker.onmessage = ({data: {id, answer, error}}) => {
    const [done, refused] = asked.get(id);
    asked.delete(id);
    if (error) refused(error); else done(answer);
  };
  const ask = (what, given = {}) => new Promise((done, refused) => {
    if (dead) { refused(dead); return; }
    asked.set(++serial, [done, refused]);
    worker.postMessage({id: serial, what, ...given});
  });
  ask("model", {model}).catch(failed);
  return ask;
}

const order = p => [...p.keys()].sort((a, b) => p[b] - p[a]);

function mapOf(look, k) {                    // a class's heat, h x w
  if (!look || k === undefined) return {peak: 0};
  const values = look.heat.subarray(k * look.h * look.w, (k + 1) * look.h * look.w);
  return {k, values, peak: Math.max(...values), h: look.h, w: look.w};
}

// The photo with a class's heat map, and frames around what the network looks at.
function render(canvas, photo, map, peak, opacity) {
  const sides = [photo.canvas.width, photo.canvas.height], scale = SCREEN_SIDE / Math.max(...sides);
  [canvas.width, canvas.height] = sides.map(side => Math.max(1, scale * side));
  const {width, height} = canvas, context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(photo.canvas, 0, 0, width, height);
  if (peak > 0) drawHeat(context, Array.from(map.values, v => v / peak), map.h, map.w, opacity);
  frame(context, [EDGE * width, EDGE * height, (1 - 2 * EDGE) * width, (1 - 2 * EDGE) * height], [9, 6]);
  if (!photo.final) return;
  const [x, y] = photo.final.centre.map(at => (at + 1 - CLOSE) / 2);
  frame(context, [x * width, y * height, CLOSE * width, CLOSE * height], [2, 5]);
}

function frame(context, box, dashes) {       // black and white in turn: seen on any ground
  context.lineWidth = 2;
  for (const [style, pattern] of [["#000", []], ["#fff", dashes]]) {
    context.strokeStyle = style;
    context.setLineDash(pattern);
    context.strokeRect(...box);
  }
  context.setLineDash([]);
}

function poster(shots, cover, rows, caption) {         // the maps, and below them rows of {name, p}
  const {height} = shots[0], sum = shots.reduce((total, shot) => total + shot.width, 8 * (shots.length - 1));
  const width = Math.max(480, sum), canvas = el("canvas", {width, height: height + 52 + 34 * rows.length});
  const c = canvas.getContext("2d");
  const write = (text, x, y, size, align = "left") => {
    c.font = `${size}px sans-serif`;
    c.fillStyle = "#111";
    c.textAlign = align;
    c.fillText(text, x, y, width - 24);
  };
  const fill = (style, ...box) => { c.fillStyle = style; c.fillRect(...box); };
  fill("#fff", 0, 0, width, canvas.height);
  shots.forEach((shot, i) => c.drawImage(shot, i * (shots[0].width + 8), 0));
  if (cover) {
    const side = cover.side * Math.min(shots[0].width, height);
    fill("#808080", cover.x * shots[0].width - side / 2, cover.y * height - side / 2, side, side);
  }
  rows.forEach(({name, p}, i) => {
    const y = height + 14 + 34 * i;
    write(name, 12, y + 14, 16);
    write(percent(p), width - 12, y + 14, 16, "right");
    fill("#ccc", 12, y + 20, width - 24, 6);
    fill("#1f66b0", 12, y + 20, (width - 24) * p, 6);
  });
  write(caption, 12, canvas.height - 12, 12);
  return canvas;
}

// ------------------------------------------------------ the tab

function setUpBirds(model, samples) {
  const {classes, stored} = model, names = classes.map(plain);
  const photos = [];                         // {name, label, sample, canvas, pixels, look, final, button}
  let current = null, busy = false;
  let cover = null, covered = null;          // {x, y, side}, shares of the photo's; {photo, cover, look}

  function complain(text) {
    $("photo-error").textContent = text;
    $("photo-error").hidden = !text;
    if (text) say(text);
  }
  const ask = startWorker(model, error => complain(`The network cannot run here (${error}).`));

  // ---------------------------------------- photos come in

  async function add(files, sample = false) {          // [{blob, name, label}]
    const failed = [], room = MOST_PHOTOS - photos.filter(each => !each.sample).length;
    if (files.length > room) failed.push(`Only ${room} of ${files.length} files are opened: remove your photos.`);
    if (!sample) complain("");
    let first = null;
    for (const {blob, name, label} of files.slice(0, room)) {
      try {
        const {canvas, ...large} = await decode(blob, name);
        const photo = {name, label, sample, canvas, pixels: await ask("squash", large)};
        photos.push(photo);
        thumbnail(photo);
        first ??= photo;
        if (first === photo && !sample) open(photo);
        else work();
        tellProgress();
      } catch (error) {
        failed.push(typeof error === "string" ? error : `${name} cannot be opened here (${error.message}).`);
      }
    }
    if (failed.length) complain([$("photo-error").textContent, ...failed].join(" ").trim());
    return first;
  }

  function thumbnail(photo) {
    const {width, height} = photo.canvas, side = Math.min(width, height);
    const canvas = el("canvas", {width: 144, height: 144}), words = el("span");
    canvas.getContext("2d").drawImage(
      photo.canvas, (width - side) / 2, (height - side) / 2, side, side, 0, 0, 144, 144);
    photo.button = el("button", {title: photo.name, onclick: () => open(photo)}, canvas, words);
    photo.button.setAttribute("aria-label", photo.name);
    $("strip").insertBefore(photo.button, photo.sample ? null : photos.find(each => each.sample)?.button ?? null);
  }

  function remove() {                        // the visitor's own photos
    for (const photo of photos.filter(each => !each.sample)) photo.button.remove();
    photos.splice(0, photos.length, ...photos.filter(each => each.sample));
    complain("");
    tellProgress();
    $("bench").hidden = !photos.length;
    if (photos.length) open(photos[0]);
    else current = null;
    $("pick").focus();
  }

  function tellProgress() {
    const own = photos.filter(each => !each.sample), done = own.filter(each => each.final || each.failed);
    $("progress").textContent = own.length > 1 ? `${done.length} of ${own.length} photos answered` : "";
    $("remove").hidden = !own.length;
  }

  function open(photo) {
    current = photo;
    leaveOut("birds", photo.sample ? "" : "your photo");
    for (const each of photos) each.button.setAttribute("aria-pressed", String(each === photo));
    $("bench").hidden = false;
    remember({photo: photo.sample ? photo.name : ""});
    draw();
    work();
  }

  // ---------------------------------------- one question at a time, the most wanted first: the latest wins

  async function work() {
    if (busy) return;
    busy = true;
    for (let job = wanted(); job; job = wanted()) {
      try {
        await job.answer();
      } catch (error) {
        job.photo.failed = true;
        complain(`The network cannot read ${job.photo.name} here (${error}).`);
      }
      draw();
      tellProgress();
    }
    busy = false;
  }

  function wanted() {
    const fresh = photo => photo && !photo.failed;
    if (fresh(current) && !current.look) {
      return {photo: current, answer: look.bind(null, current)};
    }
    if (fresh(current) && cover && !(covered?.photo === current && covered.cover === cover)) {
      return {photo: current, answer: lookCovered.bind(null, current, cover)};
    }
    const photo = [current, ...photos.filter(each => !each.sample)].find(each => fresh(each) && !each.final);
    return photo && {photo, answer: predict.bind(null, photo)};
  }

  async function look(photo) {
    photo.look = await ask("look", {pixels: photo.pixels});
  }

  async function lookCovered(photo, cover) {
    const area = rectangle(photo.canvas, cover, stored);
    covered = {photo, cover, look: await ask("look", {pixels: photo.pixels, cover: area})};
    say(`Covered: ${sentence(covered.look.probabilities)}`);
  }

  async function predict(photo) {
    photo.final = await ask("predict", {pixels: photo.pixels});
    const words = sentence(photo.final.probabilities);
    photo.button.lastChild.textContent = words;
    photo.button.setAttribute("aria-label", `${photo.name}: ${words}`);
    if (photo === current) say(`${photo.name}: ${words}`);
  }

  // ---------------------------------------- what is shown

  const sentence = p => `${names[argmax([...p])]}, ${percent(Math.max(...p))}`;
  const opacity = () => clamp(numbers("heat", 1)?.[0] ?? HEAT, 0, 100);
  const coveredLook = () => cover && covered?.photo === current ? covered.look : null;
  const probabilities = () => current.final?.probabilities || current.look?.probabilities;

  const draw = later(() => {
    if (!current) return;
    const p = probabilities(), hidden = coveredLook(), ranked = p ? order(p) : [];
    const chosen = classes.indexOf(state.species), beside = classes.indexOf(state.beside);
    const shown = chosen >= 0 ? chosen : ranked[0];
    const maps = (beside >= 0 ? [shown, beside] : [shown]).map(k => mapOf(hidden || current.look, k));
    const peak = Math.max(...maps.map(map => map.peak));         // one scale: two species can be compared
    render($("photo"), current, maps[0], peak, opacity() / 100);
    $("second").hidden = beside < 0;
    if (beside >= 0) render($("photo-2"), current, maps[1], peak, opacity() / 100);
    const label = current.label ? `; its label says ${plain(current.label)}` : "";
    $("photo-caption").textContent = `${current.name}${label}. ${caption(maps[0])}`;
    $("second-caption").textContent = beside >= 0 ? `${caption(maps[1])} Both maps have one scale.` : "";
    $("opacity").value = opacity();
    $("compare").value = beside >= 0 ? beside : "";
    $("answer").textContent = p ? sentence(hidden?.probabilities || p) : "Looking …";
    $("species-hint").textContent = !p ? "" : hidden
      ? "One look at the covered photo; the ticks mark the same look without the cover."
      : current.final ? "Click a species to see where the network finds it."
      : "First look; the answer follows …";
    bars($("species"), ranked.slice(0, 10).map(k => ({
      key: k, name: names[k], value: (hidden?.probabilities || p)[k], pressed: k === shown,
      tick: hidden ? current.look.probabilities[k] : undefined})), pick);
    covering.place();
  });

  const covering = setUpCover(to => {
    cover = to;
    if (!to) covered = null;
    draw();
    work();
  });

  function caption({k, peak}) {
    if (k === undefined) return "";
    return peak > 0 ? `Brightest where the network finds ${names[k]}.` : `Nothing here speaks for ${names[k]}.`;
  }

  function pick(k) {
    remember({species: classes[k] === state.species ? "" : classes[k]});
    draw();
    say(caption(mapOf(coveredLook() || current.look, Number(k))));
  }

  // ---------------------------------------- controls

  for (const id of ["pick", "camera"]) {
    $(id).addEventListener("change", event => {
      add([...event.target.files].map(file => ({blob: file, name: file.name})));
      event.target.value = "";
    });
  }
  classes.forEach((_, k) => $("compare").append(el("option", {value: k}, names[k])));
  $("compare").addEventListener("change", event => {
    remember({beside: classes[event.target.value] || ""});
    draw();
  });
  $("opacity").addEventListener("input", event => { remember({heat: event.target.value}); draw(); });
  $("remove").addEventListener("click", remove);
  $("save-photo").addEventListener("click", () => {
    const shots = [$("photo"), ...($("second").hidden ? [] : [$("photo-2")])];
    const p = coveredLook()?.probabilities || probabilities();
    const rows = p ? order(p).slice(0, 3).map(k => ({name: names[k], p: p[k]})) : [];
    const name = current.name.split("/").pop().replace(/\.\w+$/, "");
    download(poster(shots, cover, rows, $("photo-caption").textContent), `${name}.nestling.png`);
  });

  const ready = add((samples || []).map(({name, label, image}) => (
    {blob: new Blob([bytes(image)], {type: "image/jpeg"}), name, label})), true);
  const update = async () => {
    const asked = (state.photo || current) && numbers("cover", 3);       // no cover of a photo that is not there
    covering.set(asked && {x: asked[0], y: asked[1], side: asked[2]});
    const first = await ready, linked = photos.find(photo => photo.sample && photo.name === state.photo);
    if (linked || (first && !current)) open(linked || first); else draw();
  };
  const find = name => photos.find(each => each.name === name);
  return Object.assign(update, {add, complain, find, open, ready});
}

tab("birds", ["bird-model", "samples"], setUpBirds);

// Shows a photo that another tab has: its pixels in a canvas, its name and its label.
async function openInBirds(canvas, name, label) {
  await go("birds");
  const {add, find, open, ready} = tabs.birds.update;
  await ready;                               // it may be one of the samples
  remember({species: "", beside: ""});
  if (find(name)) open(find(name));
  else canvas.toBlob(blob => add([{blob, name, label}]));
  reveal($("answer"));
}

// Files that are dropped or pasted anywhere on the page, which the browser would leave for a dropped one.
async function receive(event, files) {
  if (!tabs.birds || (!files?.length && event.type === "paste")) return;
  event.preventDefault();
  await go("birds");
  if (!files?.length) tabs.birds.update.complain("That is no file; save the picture first, then drop its file.");
  else tabs.birds.update.add([...files].map(file => ({blob: file, name: file.name || "The pasted picture"})));
}
addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  receive(event, event.dataTransfer.files);
});
addEventListener("paste", event => receive(event, event.clipboardData.files));
