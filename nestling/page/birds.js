// ------------------------------------------------------ birds: photos in, species and heat maps out

const MOST_PHOTOS = 100, HEAT = 65;          // photos at a time; opacity of the heat map at first, in per cent
const EDGE = 0.05, CLOSE = 0.7;              // of the photo's side: cut off at first; seen in the second look

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
    covered = {photo, cover, look: await ask("look", {pixels: photo.pixels, cover: rectangle(photo, cover)})};
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

  const order = p => [...p.keys()].sort((a, b) => p[b] - p[a]);
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
    render($("photo"), maps[0], peak);
    $("second").hidden = beside < 0;
    if (beside >= 0) render($("photo-2"), maps[1], peak);
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
    place();
  });

  function mapOf(look, k) {                  // a class's heat, h x w
    if (!look || k === undefined) return {peak: 0};
    const values = look.heat.subarray(k * look.h * look.w, (k + 1) * look.h * look.w);
    return {k, values, peak: Math.max(...values), h: look.h, w: look.w};
  }

  function caption({k, peak}) {
    if (k === undefined) return "";
    return peak > 0 ? `Brightest where the network finds ${names[k]}.` : `Nothing here speaks for ${names[k]}.`;
  }

  function render(canvas, map, peak) {
    const sides = [current.canvas.width, current.canvas.height], scale = SCREEN_SIDE / Math.max(...sides);
    [canvas.width, canvas.height] = sides.map(side => Math.max(1, scale * side));
    const {width, height} = canvas, context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(current.canvas, 0, 0, width, height);
    if (peak > 0) drawHeat(context, Array.from(map.values, v => v / peak), map.h, map.w, opacity() / 100);
    frame(context, [EDGE * width, EDGE * height, (1 - 2 * EDGE) * width, (1 - 2 * EDGE) * height], [9, 6]);
    if (!current.final) return;
    const [x, y] = current.final.centre.map(at => (at + 1 - CLOSE) / 2);
    frame(context, [x * width, y * height, CLOSE * width, CLOSE * height], [2, 5]);
  }

  function frame(context, box, dashes) {     // black and white in turn: seen on any ground
    context.lineWidth = 2;
    for (const [style, pattern, offset] of [["#000", [], 0], ["#fff", dashes, 0]]) {
      context.strokeStyle = style;
      context.setLineDash(pattern);
      context.lineDashOffset = offset;
      context.strokeRect(...box);
    }
    context.setLineDash([]);
  }

  function pick(k) {
    remember({species: classes[k] === state.species ? "" : classes[k]});
    draw();
    say(caption(mapOf(coveredLook() || current.look, Number(k))));
  }

  // ---------------------------------------- the cover (occlusion, Zeiler & Fergus 2014)

  function rectangle(photo, {x, y, side}) {  // [left, top, right, bottom] in pixels of the squashed photo
    const {width, height} = photo.canvas, half = side / 2 * Math.min(width, height);
    const edge = at => Math.round(stored * clamp(at, 0, 1));
    return [x - half / width, y - half / height, x + half / width, y + half / height].map(edge);
  }

  function place() {                         // it is a square on the screen
    const box = $("cover"), {clientWidth: width, clientHeight: height} = $("photo");
    box.hidden = !cover;
    $("covering").checked = Boolean(cover);
    $("cover-size").disabled = !cover;
    if (!cover) return;
    const side = cover.side * Math.min(width, height);
    $("cover-size").value = Math.round(100 * cover.side);
    Object.assign(box.style, {width: `${side}px`, height: `${side}px`,
      left: `${cover.x * width - side / 2}px`, top: `${cover.y * height - side / 2}px`});
  }

  function setCover(to) {                    // null: none
    if (!to) covered = null;
    cover = to && {x: clamp(to.x, 0, 1), y: clamp(to.y, 0, 1), side: clamp(to.side, 0.05, 1)};
    remember({cover: cover && [cover.x, cover.y, cover.side].map(v => v.toFixed(3)).join(",")});
    place();
    draw();
    work();
  }

  $("covering").addEventListener("change", event => setCover(
    event.target.checked ? {x: 0.5, y: 0.5, side: $("cover-size").value / 100} : null));
  $("cover-size").addEventListener("input", event => setCover({...cover, side: event.target.value / 100}));
  let grip = null;                           // from the pointer to the cover's middle, in px
  $("cover").addEventListener("pointerdown", event => {
    const box = $("cover").getBoundingClientRect();
    grip = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    $("cover").setPointerCapture(event.pointerId);
  });
  $("cover").addEventListener("pointermove", event => {
    if (!grip) return;
    const box = $("photo").getBoundingClientRect();
    setCover({...cover, x: (event.clientX - grip[0] - box.left) / box.width,
      y: (event.clientY - grip[1] - box.top) / box.height});
  });
  for (const end of ["pointerup", "pointercancel"]) $("cover").addEventListener(end, () => { grip = null; });
  $("cover").addEventListener("keydown", event => {
    const by = arrow(event, event.shiftKey ? 0.1 : 0.03);
    if (!by) return;
    event.preventDefault();
    setCover({...cover, x: cover.x + by[0], y: cover.y + by[1]});
  });

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
    if (current) download(poster(), `${current.name.replace(/\.\w+$/, "")}.nestling.png`);
  });
  new ResizeObserver(place).observe($("photo"));

  function poster() {                        // the maps, and the three likeliest species below them
    const shots = [$("photo"), ...($("second").hidden ? [] : [$("photo-2")])], {height} = shots[0];
    const width = Math.max(480, shots.reduce((sum, shot) => sum + shot.width, 8 * (shots.length - 1)));
    const p = coveredLook()?.probabilities || probabilities(), rows = p ? order(p).slice(0, 3) : [];
    const canvas = el("canvas", {width, height: height + 52 + 34 * rows.length}), c = canvas.getContext("2d");
    const write = (text, x, y, size, align = "left") => {
      c.font = `${size}px sans-serif`;
      c.fillStyle = "#111";
      c.textAlign = align;
      c.fillText(text, x, y, width - 24);
    };
    c.fillStyle = "#fff";
    c.fillRect(0, 0, width, canvas.height);
    shots.forEach((shot, i) => c.drawImage(shot, i * (shots[0].width + 8), 0));
    if (cover) {
      const side = cover.side * Math.min(shots[0].width, height);
      c.fillStyle = "#808080";
      c.fillRect(cover.x * shots[0].width - side / 2, cover.y * height - side / 2, side, side);
    }
    rows.forEach((k, i) => {
      const y = height + 14 + 34 * i;
      write(names[k], 12, y + 14, 16);
      write(percent(p[k]), width - 12, y + 14, 16, "right");
      c.fillStyle = "#ccc";
      c.fillRect(12, y + 20, width - 24, 6);
      c.fillStyle = "#1f66b0";
      c.fillRect(12, y + 20, (width - 24) * p[k], 6);
    });
    write($("photo-caption").textContent, 12, canvas.height - 12, 12);
    return canvas;
  }

  const ready = add((samples || []).map(({name, label, image}) => (
    {blob: new Blob([bytes(image)], {type: "image/jpeg"}), name, label})), true);
  const update = async () => {
    const asked = (state.photo || current) && numbers("cover", 3);       // no cover of a photo that is not there
    setCover(asked && {x: asked[0], y: asked[1], side: asked[2]});
    const first = await ready, linked = photos.find(photo => photo.sample && photo.name === state.photo);
    if (linked || (first && !current)) open(linked || first); else draw();
  };
  return Object.assign(update, {add, complain, find: name => photos.find(each => each.name === name), open});
}

tab("birds", ["bird-model", "samples"], setUpBirds);

// Shows a photo that another tab has: its pixels in a canvas, its name and its label.
async function openInBirds(canvas, name, label) {
  await go("birds");
  const {add, find, open} = tabs.birds.update;
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
