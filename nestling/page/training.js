// ------------------------------------------------------ training

// A program's charts: title, unit, and lines: the key of a row, and a name.
const CHARTS = {
  bird: [
    ["Loss", "nats per photo", [["train_loss", "training"], ["val_loss", "validation"]]],
    ["Accuracy and score", "0 to 1", [["train_accuracy", "training accuracy"],
      ["val_accuracy", "validation accuracy"], ["val_score", "validation score"]]],
    ["Learning rate", "per step", [["lr", "learning rate"]]]],
  vae: [
    ["Mutual information of the clusters", "nats",
      [["information", "training"], ["held_information", "held out"]]],
    ["Loss", "per image", [["loss", "training"], ["held_loss", "held out"]]],
    ["Reconstruction error", "nats per image", [["recon", "training"], ["held_recon", "held out"]]],
    ["KL divergence", "nats per image", [["kl", "training"], ["held_kl", "held out"]]],
    ["Structural similarity (SSIM)", "up to 1", [["ssim", "training"], ["held_ssim", "held out"]]],
    ["Learning rate", "per step", [["lr", "learning rate"]]]]};
const TITLES = {bird: "Birds", vae: "Digits"};
const LIVE = "live" in document.documentElement.dataset;
const short = v => Math.abs(v) >= 100 ? v.toFixed(0) : v && Math.abs(v) < 0.001 ? v.toExponential(1)
  : v.toPrecision(3);
const minutes = seconds => `${(seconds / 60).toFixed(1)} minutes`;

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function ticks(low, high) {                  // at most 7 round numbers
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(each => each >= rough), first = Math.ceil(low / step - 1e-9);
  const many = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({length: many}, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

const drawable = (lines, row) => lines.some(([key]) => Number.isFinite(row[key]));

// A chart of those rows that hold its values: {figure, mark}. mark(row) shows the values of an epoch; pick(row) is
// called with the epoch that is pointed at.
function chart([title, unit, lines], rows, width, pick) {
  const height = 224, left = 46, right = 12, top = 24, bottom = 38;
  const used = rows.filter(row => drawable(lines, row));
  const values = used.flatMap(row => lines.map(([key]) => row[key])).filter(Number.isFinite);
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const pad = 0.05 * (high - low) || 0.5 * Math.abs(high) || 0.5;
  low -= pad; high += pad;
  const first = used[0].epoch, last = Math.max(used.at(-1).epoch, first + 1);
  const x = row => left + (row.epoch - first) / (last - first) * (width - left - right);
  const y = v => height - bottom - (v - low) / (high - low) * (height - top - bottom);
  const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img"},
    svg("text", {x: 2, y: 12}, unit),
    svg("text", {x: width - right, y: height - 4, "text-anchor": "end"}, "epoch"));
  for (const v of ticks(low, high)) {
    picture.append(svg("path", {class: "grid", d: `M${left} ${y(v)}H${width - right}`}),
      svg("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end"}, String(v)));
  }
  for (const epoch of ticks(first, last).filter(Number.isInteger)) {
    picture.append(svg("text", {x: x({epoch}), y: height - 20, "text-anchor": "middle"}, String(epoch)));
  }
  const now = svg("path", {class: "now"}), told = [], caption = el("figcaption", {}, el("b", {}, title));
  picture.append(now);
  const drawn = lines.map(([key, name], i) => {
    const points = used.filter(row => Number.isFinite(row[key])), words = el("span");
    const d = points.map(row => `${x(row).toFixed(1)} ${y(row[key]).toFixed(1)}`).join("L");
    const dot = svg("circle", {class: `s${i + 1}`, r: 3.5});
    picture.append(svg("path", {class: `s${i + 1}`, d: d && `M${d}`}), dot);
    const sample = svg("path", {class: `s${i + 1}`, d: "M0 5H28"});
    caption.append(el("span", {}, svg("svg", {class: "key", "aria-hidden": true}, sample), words));
    if (points.length) told.push(`${name} from ${short(points[0][key])} to ${short(points.at(-1)[key])}`);
    return {key, name, words, dot};
  });
  picture.setAttribute("aria-label",
    `${title}, ${unit}, epochs ${first} to ${used.at(-1).epoch}: ${told.join("; ")}`);
  const point = event => {
    if (!event.buttons) return;
    const box = picture.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * width;
    pick(used.reduce((best, row) => Math.abs(x(row) - at) < Math.abs(x(best) - at) ? row : best));
  };
  picture.addEventListener("pointerdown", point);
  picture.addEventListener("pointermove", point);

  function mark(row) {
    now.setAttribute("d", used.includes(row) ? `M${x(row)} ${top}V${height - bottom}` : "");
    for (const {key, name, words, dot} of drawn) {
      const there = Number.isFinite(row[key]);
      words.textContent = there ? `${name} ${short(row[key])}` : name;
      dot.setAttribute("display", there ? "inline" : "none");
      if (there) { dot.setAttribute("cx", x(row)); dot.setAttribute("cy", y(row[key])); }
    }
  }
  return {figure: el("figure", {}, caption, picture), mark};
}

// Work done at a share of a training. bird.py's photos grow at 0.4 and at 0.8 of it to 1/2, 3/4 and all of their
// size; an epoch costs their pixels and a constant (fit_epochs in bird.py).
function work({progress, size}) {
  if (!size) return progress;
  return 0.35 * Math.min(progress, 0.4) + 0.66 * clamp(progress - 0.4, 0, 0.4) + 1.1 * Math.max(progress - 0.8, 0);
}

// What a training that runs is at. age: seconds since its last row was written.
function activity(rows, age) {
  const last = rows.at(-1), begun = rows.findIndex(row => row.phase === last.phase);
  const first = last.phase === "clusters", pace = last.seconds - (rows.at(-2)?.seconds ?? 0);
  if (age > 60 + 5 * pace) {
    return `No new epoch for ${count(Math.round(age / 60), "minute")}: it may have stopped.`;
  }
  if (last.progress >= 1) return first ? "Its first phase of two is done." : "Its last epoch is done.";
  const spent = last.seconds - (rows[begun - 1]?.seconds ?? 0);
  const left = spent * (work({...last, progress: 1}) / work(last) - 1) - age;
  if (!Number.isFinite(left)) return "It is running.";      // vae.py did not always write its progress
  const about = left < 30 ? "less than a minute" : `about ${count(Math.round(left / 60), "minute")}`;
  return `It is running: ${about} left${first ? " of its first phase of two" : ""}.`;
}

function summary(rows, age) {                // age: null where the training is at its end
  const last = rows.at(-1), best = rows.findLast(row => row.best);
  const planned = age !== null && last.epochs > rows.length ? `${rows.length} of ${last.epochs} epochs` : "";
  const words = [`${planned || count(rows.length, "epoch")} in ${minutes(last.seconds)}.`];
  if (age !== null) words.push(LIVE ? activity(rows, age) : "It had not ended when this page was made.");
  if (best) words.push(`Epoch ${best.epoch} has the lowest validation loss; its weights are kept.`);
  return words.join(" ");
}

function setUpTraining(histories) {
  const programs = {};                       // name -> {rows, age, chosen, fresh, draw}
  const asked = program => Number(state[`epoch-${program}`]) || null;

  function add(program) {
    const status = el("p"), charts = el("div", {class: "charts"}), words = el("span");
    const slider = el("input",
      {type: "range", min: 1, id: `epoch-${program}`, oninput: () => choose(Number(slider.value))});
    const entry = {rows: [], age: null, chosen: asked(program), fresh: true};
    let made = [], width = 0;

    function choose(epoch) {                 // null: the last one, also when more follow
      entry.chosen = epoch < entry.rows.length ? epoch : null;
      remember({[`epoch-${program}`]: entry.chosen});
      entry.draw();
    }

    function make() {                        // as many columns of 300 px and more as fit, in rows of equal length
      const most = Math.max(1, Math.floor((width + 16) / 316));
      const shown = CHARTS[program].filter(([, , lines]) => entry.rows.some(row => drawable(lines, row)));
      const columns = Math.ceil(shown.length / Math.ceil(shown.length / most));
      charts.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
      const each = (width - 16 * (columns - 1)) / columns - 22;
      made = shown.map(what => chart(what, entry.rows, each, row => choose(entry.rows.indexOf(row) + 1)));
      charts.replaceChildren(...made.map(({figure}) => figure));
    }

    entry.draw = later(() => {
      const {rows, age, chosen} = entry;
      slider.max = rows.length;
      slider.value = chosen ?? rows.length;
      const row = rows[slider.value - 1];
      words.textContent = [row.epoch, row.phase && `phase of ${row.phase}`, row.size && `photos of ${row.size} px`,
        `after ${minutes(row.seconds)}`, row.best && "lowest validation loss so far"].filter(Boolean).join(", ");
      slider.setAttribute("aria-valuetext", words.textContent);
      status.textContent = summary(rows, age);
      if (entry.fresh || charts.clientWidth !== width) {
        width = charts.clientWidth;
        entry.fresh = !width;                // 0 while the tab is hidden
        if (width) make();
      }
      for (const {mark} of made) mark(row);
    });
    new ResizeObserver(entry.draw).observe(charts);
    $("trainings").append(el("h2", {}, TITLES[program]), status, el("p", {class: "epochs"},
      el("label", {for: slider.id}, "Epoch"), " ", words, slider), charts);
    return entry;
  }

  function take(given) {                     // {program: {rows, age}}; what it lacks stays as it is
    for (const program of Object.keys(CHARTS)) {
      if (!given[program]?.rows?.length) continue;
      const entry = programs[program] ??= add(program), {rows, age} = given[program], before = entry.rows;
      if (before.length !== rows.length || before.at(-1).seconds !== rows.at(-1).seconds) {
        Object.assign(entry, {rows, fresh: true});
        if (before.length && !$("training").hidden) say(`${TITLES[program]}: ${count(rows.length, "epoch")}`);
      }
      entry.age = age;
      entry.draw();
    }
    $("waiting").hidden = Object.keys(programs).length > 0;
    $("slider-hint").hidden = !$("waiting").hidden;
  }

  async function poll() {
    let lost = true;
    try {
      const answer = await fetch("history.json", {signal: AbortSignal.timeout(20000)});
      take(await answer.json());
      lost = false;
    } catch { /* the server has stopped, or is another one */ }
    if (lost && $("lost").hidden && !$("training").hidden) say($("lost").textContent);
    $("lost").hidden = !lost;
    setTimeout(poll, 3000);
  }

  if (!LIVE) $("waiting").textContent = "No epoch had ended when this page was made.";
  take(histories);
  if (LIVE) poll();
  return () => {
    for (const [program, entry] of Object.entries(programs)) {
      entry.chosen = asked(program);
      entry.draw();
    }
  };
}

tab("training", ["histories"], setUpTraining);
