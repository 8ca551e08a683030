// ------------------------------------------------------ mistakes

async function setUpMistakes(mistakes) {
  const {matrix, photos, worst, shown, h, w} = mistakes, names = mistakes.classes.map(plain);
  const right = matrix.reduce((sum, row, k) => sum + row[k], 0), wrong = photos - right;
  const cut = await sprite(mistakes);
  const byLoss = test => [...shown.keys()].filter(i => test(shown[i]))
    .sort((a, b) => shown[b].loss - shown[a].loss);
  let listed = [];                           // what the gallery shows, of `shown`

  // ---------------------------------------- the confusion matrix: a button in each cell that is not 0

  function cell(n, i, j, total) {
    const words = `${n} of ${count(total, "photo")} of ${names[i]}: the network says ${names[j]}`;
    const box = el("td", {class: i === j ? "right" : null});
    if (n) box.append(el("button", {"aria-label": words, title: words, "data-cell": `${i}-${j}`}, String(n)));
    box.style.setProperty("--share", n / total || 0);
    return box;
  }

  const heads = names.map(name => el("th", {scope: "col", title: name}, el("span", {}, name)));
  const corner = el("td", {},
    el("span", {}, "the network says\u00a0→"), el("span", {}, "species of the photo\u00a0↓"));
  $("matrix").append(el("thead", {}, el("tr", {}, corner, ...heads)), el("tbody", {}, ...matrix.map((row, i) =>
    el("tr", {}, el("th", {scope: "row", title: names[i]}, names[i]),
      ...row.map((n, j) => cell(n, i, j, row.reduce((a, b) => a + b, 0)))))));
  const buttons = [...$("matrix").querySelectorAll("button")];
  const place = button => button.dataset.cell.split("-").map(Number);

  // Left and right: the cells one after another; up and down: the nearest in the next row that has one.
  function neighbour(button, [dx, dy]) {
    const [row, column] = place(button), far = other => Math.abs(place(other)[1] - column);
    if (dx) return buttons[buttons.indexOf(button) + dx];
    const beyond = buttons.map(other => place(other)[0]).filter(i => (i - row) * dy > 0);
    const next = dy > 0 ? Math.min(...beyond) : Math.max(...beyond);
    return buttons.filter(other => place(other)[0] === next).sort((a, b) => far(a) - far(b))[0];
  }

  function reach(button) {                   // the one that the Tab key finds
    for (const each of buttons) each.tabIndex = each === button ? 0 : -1;
  }

  $("matrix").addEventListener("keydown", event => {
    const way = !event.altKey && !event.ctrlKey && !event.metaKey && arrow(event, 1);
    const next = way && neighbour(event.target, way);
    if (way) event.preventDefault();
    if (next) { reach(next); next.focus(); }
  });
  $("matrix").addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) choose(button.dataset.cell);
  });

  // ---------------------------------------- the gallery

  function card(i) {
    const {aspect, label, predicted, p, p_label, loss, heat, file} = shown[i], hit = label === predicted;
    const canvas = cut(i), verdict = hit ? "✓ recognised" : `✗ the network says ${names[predicted]}`;
    canvas.style.aspectRatio = clamp(aspect, 0.6, 1.7);
    if ($("gallery-heat").checked) {
      drawHeat(canvas.getContext("2d"), Array.from(bytes(heat), v => v / 255), h, w, 0.65);
    }
    const open = () => openInBirds(unsquashed(i), `${mistakes.classes[label]}/${file}`, mistakes.classes[label]);
    const words = `Open this photo of ${names[label]} in the tab of the birds`;
    return el("li", {}, el("button", {"aria-label": words, title: words, onclick: open}, canvas),
      el("b", {title: names[label]}, names[label]),
      el("p", {class: hit ? null : "wrong", title: verdict}, `${verdict}, ${percent(p)}`),
      el("p", {class: "dim"}, hit ? "" : `the right species ${percent(p_label)}; `, `loss ${loss.toFixed(2)}`),
      el("p", {class: "dim file", title: file}, file));
  }

  function unsquashed(i) {                   // the photo in its own aspect ratio
    const small = cut(i), {aspect} = shown[i], side = 2 * small.width;
    const canvas = el("canvas", {
      width: Math.max(1, side * Math.min(1, aspect)), height: Math.max(1, side * Math.min(1, 1 / aspect))});
    canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  const fill = () => $("gallery").replaceChildren(...listed.map(card));

  function update() {                        // what `state.cell` says: all mistakes, a cell, or the worst photos
    const all = state.cell === "all" && wrong, pressed = buttons.find(each => each.dataset.cell === state.cell);
    let title = `The ${count(worst.length, "photo")} of highest loss`;
    listed = worst;
    if (all) {
      listed = byLoss(photo => photo.label !== photo.predicted);
      title = wrong === 1 ? "The one mistake"
        : listed.length < wrong ? `The ${listed.length} mistakes of highest loss, of ${wrong}`
        : `All ${wrong} mistakes, the highest loss first`;
    } else if (pressed) {
      const [i, j] = place(pressed), n = matrix[i][j];
      listed = byLoss(photo => photo.label === i && photo.predicted === j);
      title = `${names[i]}, ${i === j ? "recognised" : `the network says ${names[j]}`}: `
        + (listed.length < n ? `the ${listed.length} least sure of ${n} photos` : count(n, "photo"));
    }
    $("gallery-title").textContent = title;
    $("show-worst").setAttribute("aria-pressed", String(!all && !pressed));
    $("show-wrong").setAttribute("aria-pressed", String(Boolean(all)));
    for (const each of buttons) each.setAttribute("aria-pressed", String(each === pressed));
    reach(pressed || buttons[0]);
    $("gallery-heat").checked = Boolean(state.maps);
    fill();
  }

  function choose(chosen) {
    remember({cell: chosen});
    update();
    say($("gallery-title").textContent);
    const {top} = $("gallery-title").getBoundingClientRect();
    if (top > 0 && top < innerHeight / 2) return;
    $("gallery-title").scrollIntoView({behavior: still.matches ? "auto" : "smooth"});
  }

  $("matrix-title").textContent = wrong
    ? `${wrong} of ${count(photos, `${mistakes.set} photo`)} misclassified: accuracy ${percent(right / photos)}`
    : `No mistakes in ${count(photos, `${mistakes.set} photo`)}`;
  $("show-worst").textContent = `Highest loss (${worst.length})`;
  $("show-wrong").textContent = `Mistakes (${wrong})`;
  $("show-wrong").hidden = !wrong;
  $("show-worst").addEventListener("click", () => choose(""));
  $("show-wrong").addEventListener("click", () => choose("all"));
  $("gallery-heat").addEventListener("change", event => {
    remember({maps: event.target.checked ? 1 : ""});
    fill();
  });
  return update;
}

tab("mistakes", ["mistakes"], setUpMistakes);
