// ------------------------------------------------------ the tabs' buttons, links, and the first view

const names = Object.keys(tabs);
names.forEach((name, i) => {
  const button = $(`tab-${name}`);
  button.hidden = false;
  button.addEventListener("click", () => go(name));
  button.addEventListener("keydown", event => {
    const to = {ArrowRight: i + 1, ArrowLeft: i - 1 + names.length, Home: 0, End: names.length - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    $(`tab-${names[to % names.length]}`).focus();
    $(`tab-${names[to % names.length]}`).click();
  });
});

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    writeState();
    const {leftOut} = $(state.tab).dataset, without = leftOut ? `, without ${leftOut}` : "";
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = `Copied${without}`;
    } catch {                                // not allowed
      button.textContent = `Copy it from the address bar${without}`;
    }
    say(button.textContent);
    setTimeout(() => { button.textContent = "Copy link"; }, 4000);
  });
}

function open() {
  clearTimeout(writing);
  readState();
  show(names.includes(state.tab) ? state.tab : names[0]);
}
addEventListener("popstate", open);
open();
