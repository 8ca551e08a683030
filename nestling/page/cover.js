// ------------------------------------------------------ birds: a grey square to hide a part of the photo with

// As in the occlusion maps of Zeiler & Fergus (2014), but moved by hand.

// Its rectangle of the squashed photo, [left, top, right, bottom] in pixels of `side`.
function rectangle({width, height}, cover, side) {
  const half = cover.side / 2 * Math.min(width, height), edge = at => Math.round(side * clamp(at, 0, 1));
  const [x, y] = [half / width, half / height];
  return [cover.x - x, cover.y - y, cover.x + x, cover.y + y].map(edge);
}

// changed(cover) is called with {x, y, side}, shares of the photo's sides, or null. Returns set(cover), place().
function setUpCover(changed) {
  const box = $("cover"), size = $("cover-size");
  let cover = null, grip = null;             // grip: from the pointer to the cover's middle, in px

  function place() {                         // it is a square on the screen
    const {clientWidth: width, clientHeight: height} = $("photo");
    box.hidden = size.disabled = !cover;
    $("covering").checked = Boolean(cover);
    if (!cover) return;
    const side = cover.side * Math.min(width, height);
    size.value = Math.round(100 * cover.side);
    Object.assign(box.style, {width: `${side}px`, height: `${side}px`,
      left: `${cover.x * width - side / 2}px`, top: `${cover.y * height - side / 2}px`});
  }

  function set(to) {
    cover = to && {x: clamp(to.x, 0, 1), y: clamp(to.y, 0, 1), side: clamp(to.side, 0.05, 1)};
    remember({cover: cover && [cover.x, cover.y, cover.side].map(value => value.toFixed(3)).join(",")});
    place();
    changed(cover);
  }

  $("covering").addEventListener("change", event => set(
    event.target.checked ? {x: 0.5, y: 0.5, side: size.value / 100} : null));
  size.addEventListener("input", () => set({...cover, side: size.value / 100}));
  box.addEventListener("pointerdown", event => {
    const {left, top, width, height} = box.getBoundingClientRect();
    grip = [event.clientX - left - width / 2, event.clientY - top - height / 2];
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", event => {
    if (!grip) return;
    const {left, top, width, height} = $("photo").getBoundingClientRect();
    set({...cover, x: (event.clientX - grip[0] - left) / width, y: (event.clientY - grip[1] - top) / height});
  });
  for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, () => { grip = null; });
  box.addEventListener("keydown", event => {
    const by = arrow(event, event.shiftKey ? 0.1 : 0.03);
    if (!by) return;
    event.preventDefault();
    set({...cover, x: cover.x + by[0], y: cover.y + by[1]});
  });
  new ResizeObserver(place).observe($("photo"));
  return {set, place};
}
