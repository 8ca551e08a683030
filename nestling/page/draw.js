// ------------------------------------------------------ digits: a canvas to draw one on

// usual: the mean squared error that 99 % of the data's reconstructions do not exceed, if known.
// placed({mu, sigma}), or placed(null) for an empty canvas, is called after each change.
function setUpInk(net, usual, placed) {
  const SIDE = 280, WIDTH = 26, {mixture} = net;
  const digits = new Intl.ListFormat("en", {type: "disjunction"}).format(
    [...mixture.digits].sort((a, b) => a - b).map(a));
  const canvas = $("ink"), context = canvas.getContext("2d", {willReadFrequently: true});
  let strokes = [], stroke = null;           // of points; the one of a pressed pointer, {id, points}
  let pen = [SIDE / 2, SIDE / 2], down = false, note = "";           // of the keyboard; what became of it

  function paint() {
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIDE, SIDE);
    context.strokeStyle = "#fff";
    context.lineWidth = WIDTH;
    context.lineCap = context.lineJoin = "round";
    for (const points of strokes) {
      context.beginPath();
      context.moveTo(...points[0]);
      for (let i = 1; i < points.length - 1; i++) {        // curves through the middles: smooth
        const [x, y] = points[i], [u, v] = points[i + 1];
        context.quadraticCurveTo(x, y, (x + u) / 2, (y + v) / 2);
      }
      context.lineTo(...(points.length > 1 ? points.at(-1) : [points[0][0] + 0.1, points[0][1]]));
      context.stroke();
    }
  }

  function inkOf() {                         // 0..1, means of 2 x 2 pixels
    const {data} = context.getImageData(0, 0, SIDE, SIDE), half = SIDE / 2, ink = new Float32Array(half * half);
    for (let y = 0; y < half; y++) {
      for (let x = 0; x < half; x++) {
        const i = 4 * (2 * y * SIDE + 2 * x), j = i + 4 * SIDE;
        ink[y * half + x] = (data[i] + data[i + 4] + data[j] + data[j + 4]) / 1020;
      }
    }
    return ink;
  }

  const read = later(() => {
    paint();
    if (strokes.length) answer(Nets.asMnist(inkOf(), SIDE / 2));
    else empty();
    if (canvas.matches(":focus-visible")) {  // the pen of the keyboard
      context.strokeStyle = down ? "#ff8a80" : "#79b4f0";
      context.lineWidth = 3;
      context.strokeRect(pen[0] - 8, pen[1] - 8, 16, 16);
    }
  });

  function empty() {
    for (const id of ["seen", "rebuilt"]) drawGrey($(id), new Float32Array(784));
    context.fillStyle = "#999";
    context.font = "24px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText("draw here", SIDE / 2, SIDE / 2 + 60);
    $("reading").textContent = `The canvas is empty: draw ${digits} on it.`;
    $("drawn-place").textContent = "";
    $("drawn-components").replaceChildren();
    $("drawn-title").hidden = true;
    leaveOut("digits", "");
    placed(null);
  }

  function answer(x) {                       // to a drawing as MNIST shows it
    const {mu, sigma} = net.encode(x), {shares, digit, share} = classify(mixture, mu);
    const made = net.decode(mu), error = x.reduce((sum, value, i) => sum + (value - made[i]) ** 2, 0) / x.length;
    drawGrey($("seen"), x);
    drawGrey($("rebuilt"), made);
    $("reading").textContent = `Read as ${digit}, ${percent(share)}.`;
    $("drawn-title").hidden = false;
    leaveOut("digits", "the drawing");
    const deviations = sigma.map(value => value.toPrecision(2)).join(" and ");
    $("drawn-place").textContent =
      `It lies at ${coordinates(mu)} in the plane, with standard deviations of ${deviations}. The mean squared `
      + `error of its reconstruction is ${error.toFixed(3)}${
        error > usual ? ", more than for 99\u00a0% of the digits here: it may be none of them" : ""}.`;
    componentBars($("drawn-components"), mixture, shares);
    placed({mu, sigma});
    say(`${note} ${$("reading").textContent}`);
    note = "";
  }

  function change(to) {                      // the strokes, but for the one that grows
    strokes = to;
    stroke = null;
    down = false;
    if (!strokes.length) say("The canvas is empty.");
    read();
  }
  const undo = () => change(strokes.slice(0, -1));

  const where = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
  };
  canvas.addEventListener("pointerdown", event => {
    if (stroke || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    stroke = {id: event.pointerId, points: [where(event)]};
    strokes.push(stroke.points);
    down = false;
    read();
  });
  canvas.addEventListener("pointermove", event => {
    if (stroke?.id !== event.pointerId) return;
    const all = event.getCoalescedEvents?.() || [];
    for (const each of all.length ? all : [event]) {
      const at = where(each), last = stroke.points.at(-1);
      if (Math.hypot(at[0] - last[0], at[1] - last[1]) > 2) stroke.points.push(at);
    }
    read();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, event => { if (stroke?.id === event.pointerId) stroke = null; });
  }

  canvas.addEventListener("keydown", event => {
    const by = arrow(event, event.shiftKey ? 30 : 10), command = event.ctrlKey || event.metaKey;
    if (command && event.key === "z") undo();
    else if (command || event.altKey || stroke) return;
    else if (by) {
      pen = [clamp(pen[0] + by[0], 12, SIDE - 12), clamp(pen[1] + by[1], 12, SIDE - 12)];
      if (down) strokes.at(-1).push(pen);
    } else if (event.key === " ") {
      down = !down;
      if (down) strokes.push([pen]);
      say(note = down ? "The pen is down." : "The pen is up.");
    } else return;
    event.preventDefault();
    read();
  });
  for (const event of ["focus", "blur"]) canvas.addEventListener(event, () => { down = false; read(); });
  $("undo").addEventListener("click", undo);
  $("clear").addEventListener("click", () => change([]));
  read();
}

