// ------------------------------------------------------ the tabs' buttons, links, and the first view

const names = Object.keys(tabs);
names.forEach((name, i) => {
  const button = $(`tab-${name}`);
  button.hidden = false;
  button.addEventListener("click", () => show(name));
  button.addEventListener("keydown", event => {
    const to = {ArrowRight: i + 1, ArrowLeft: i - 1 + names.length, Home: 0, End: names.length - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(names[to % names.length]);
    $(`tab-${names[to % names.length]}`).focus();
  });
});

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    writeState();
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {                                // not allowed
      button.textContent = "Copy it from the address bar";
    }
    say(button.textContent);
    setTimeout(() => { button.textContent = "Copy link"; }, 2500);
  });
}

function open() {
  readState();
  show(names.includes(state.tab) ? state.tab : names[0]);
}
addEventListener("hashchange", open);
open();
