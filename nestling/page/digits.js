// ------------------------------------------------------ digits: a plane whose points are images

function filmStrip(net, [ax, ay], [bx, by]) {        // nine images along the line
  return Array.from({length: 9}, (_, i) => {
    const z = [ax + i / 8 * (bx - ax), ay + i / 8 * (by - ay)], {digit} = classify(net.mixture, z);
    const image = el("canvas", {width: 28, height: 28, class: "digit", role: "img",
      "aria-label": `Step ${i + 1}, read as ${digit}`});
    drawGrey(image, net.decode(z));
    return el("figure", {}, image, el("figcaption", {"aria-hidden": "true"}, String(digit)));
  });
}

function savePlane() {                       // with the walk's images below it
  const images = [...$("walk").querySelectorAll("canvas")], {width, height} = $("plane");
  const side = images.length && Math.floor(width / images.length);
  const sheet = el("canvas", {width, height: height + side}), context = sheet.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage($("plane"), 0, 0);
  images.forEach((image, i) => context.drawImage(image, i * side, height, side, side));
  download(sheet, "plane.nestling.png");
}

async function setUpDigits(model, points) {
  const net = Nets.vae(model), {mixture} = net, canvas = $("plane"), view = new View(canvas);
  const {z, labels} = points || {z: [], labels: []}, cut = points && await sprite(points);
  const answers = z.map(each => classify(mixture, each)), digits = [...mixture.digits].sort((a, b) => a - b);
  const contours = sigmas => mixture.means.map((mean, k) => ellipse(mean, mixture.covariances[k], sigmas));
  const start = contours(1)[argmax(mixture.weights)][8], everything = [...z, ...contours(2).flat()];
  const base = el("canvas");                 // all but what follows the pointer
  let stale = true, whole = true;            // base is to be drawn anew; the view is of everything
  let kept = start, point = start;           // kept: where the point stays when the mouse leaves
  let walk = [], drawn = null, groups = [];  // ends, one or two; the drawing's {mu, sigma}; of the points

  const choices = !z.length ? ["component"] : labels.some(label => label >= 0) ?
    ["digit", "component", "certainty"] : ["component", "certainty"];
  $("colour").append(...choices.map(value => el("option", {value}, value)));
  $("colour").hidden = $("colour").labels[0].hidden = choices.length < 2;

  function group() {                         // the points, by the chosen colour
    groups = groupsBy($("colour").value, answers, labels, digits);
    showLegend(groups);
    redraw();
  }

  // --- drawing

  function drawBase() {
    const context = base.getContext("2d");
    base.width = canvas.width;
    base.height = canvas.height;
    context.scale(view.ratio, view.ratio);
    context.fillStyle = colour("--ground");
    context.fillRect(0, 0, view.width, view.height);
    drawRegions(context, view, mixture);
    drawGrid(context, view);
    drawPoints(context, view, groups, z);
    drawMixture(context, view, mixture);
  }

  const draw = later(() => {
    if (!canvas.clientWidth) return;         // another tab is shown
    if (view.fit()) stale = true;
    if (stale && whole) view.frame(everything);
    if (stale) drawBase();
    stale = false;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(base, 0, 0);
    context.scale(view.ratio, view.ratio);
    if (walk.length) drawWalk(context, view, walk.length > 1 ? walk : [walk[0], point]);
    if (drawn) drawPosterior(context, view, drawn);
    const near = nearest();
    if (near >= 0) drawRing(context, view, z[near], colour("--mark"), 5);
    drawRing(context, view, point, colour("--ink"), 9);
    tellPoint();
    tellNear(near);
    $("show-drawn").hidden = !drawn || view.contains(drawn.mu);
  });
  const redraw = () => { stale = true; draw(); };
  let told = null;                           // the point that was decoded last

  function nearest() {                       // the image nearest to the point, if it is near on the screen
    let best = -1, least = 16 / view.scale;
    z.forEach(([x, y], i) => {
      const distance = Math.hypot(x - point[0], y - point[1]);
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  function tellPoint() {
    if (point === told) return;
    told = point;
    drawGrey($("decoded"), net.decode(point));
    $("decoded-caption").textContent = `decoded at ${coordinates(point)}`;
    componentBars($("components"), mixture, mixture.responsibilities(point));
  }

  function tellNear(near) {
    $("near").hidden = !z.length;
    if (near < 0) {
      $("near-image").getContext("2d").clearRect(0, 0, 14, 14);
      $("near-caption").textContent = "no image near";
      return;
    }
    cut(near, $("near-image"));
    const label = labels[near], {digit} = answers[near];
    $("near-caption").textContent = `nearest image: ${
      label < 0 ? `read as ${digit}` : label === digit ? a(label) : `${a(label)}, read as ${digit}`}`;
  }

  // --- the point and the walk

  function look(to) {
    point = to;
    draw();
  }

  function keep(to) {
    kept = rounded(to);
    look(kept);
    remember({z: String(kept)});
    const {digit, share} = classify(mixture, kept);
    say(`${coordinates(kept)}: component of the ${digit}, ${percent(share)}`);
  }

  function fix() {                           // the point, as an end of a walk; the third begins another one
    const [x, y] = view.toScreen(walk[0] || kept), [u, v] = view.toScreen(kept);
    if (walk.length === 1 && Math.hypot(x - u, y - v) < 6) return;       // a double click
    walk = walk.length === 1 ? [walk[0], kept] : [kept];
    showWalk();
    say($("walk-text").textContent);
    if (walk.length === 2) reveal($("walk"));
  }

  function drop() {
    walk = [];
    canvas.focus();
    showWalk();
    say("The walk is dropped.");
  }

  function showWalk() {
    remember({walk: String(walk)});
    const [first, last] = walk.map(end => classify(mixture, end).digit);
    $("walk-text").textContent = [
      `Walk from one digit to another: click or tap two places, say the ${digits[0]} and the ${digits.at(-1)}.`,
      `The walk begins here, at ${a(first)}: click or tap where it shall end.`,
      `A walk from ${a(first)} to ${a(last)}: nine images along the line.`][walk.length];
    $("drop-walk").hidden = !walk.length;
    $("walk").hidden = walk.length < 2;
    $("walk").replaceChildren(...walk.length === 2 ? filmStrip(net, ...walk) : []);
    draw();
  }

  // --- what moves the view

  function changed() {                       // the view, to something else than the whole plane
    whole = false;
    remember({view: String([view.x, view.y, view.span])});
    redraw();
  }
  const zoom = (factor, at = [view.width / 2, view.height / 2]) => { view.zoom(factor, at); changed(); };
  const place = at => view.toPlane(at);
  steer(canvas, {zoom, leave: () => look(kept), point: at => look(place(at)), stay: at => keep(place(at)),
    tap: at => { keep(place(at)); fix(); }, drag: (dx, dy) => { view.pan(dx, dy); changed(); }});

  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;          // the browser's
    const by = arrow(event, (event.shiftKey ? 40 : 8) / view.scale), {key} = event;
    if (by) {
      keep([point[0] + by[0], point[1] - by[1]]);
      if (!view.contains(point)) { view.set(...point, view.span); changed(); }
    } else if (key === "Enter") { keep(point); fix(); }
    else if (key === "Escape" && walk.length) drop();
    else if (key === "+" || key === "=") zoom(1.3, view.toScreen(point));
    else if (key === "-") zoom(1 / 1.3, view.toScreen(point));
    else return;
    event.preventDefault();
  });

  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("zoom-all").addEventListener("click", () => { whole = true; remember({view: ""}); redraw(); });
  $("show-drawn").addEventListener("click", () => { view.frame([...view.corners(), drawn.mu]); changed(); });
  $("drop-walk").addEventListener("click", drop);
  $("save-plane").addEventListener("click", savePlane);
  $("colour").addEventListener("change", () => { remember({colour: $("colour").value}); group(); });
  dark.addEventListener("change", group);
  new ResizeObserver(draw).observe(canvas);

  setUpInk(net, points?.error, result => { drawn = result; draw(); });
  return () => {                             // as `state` says
    const at = (key, n) => numbers(key, n)?.map(value => clamp(value, -100, 100));
    const ends = at("walk", 4) || at("walk", 2) || [], part = numbers("view", 3);
    kept = point = at("z", 2) || start;
    walk = [ends.slice(0, 2), ends.slice(2)].filter(end => end.length);
    whole = !part;
    if (part) view.set(...part);
    $("colour").value = choices.includes(state.colour) ? state.colour : choices[0];
    group();
    showWalk();
  };
}

tab("digits", ["vae-model", "points"], setUpDigits);
