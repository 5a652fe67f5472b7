"use strict";
// Carries the session into other tabs, and refreshes the live parts of a page while the page is visible.

// The address of the session's pages contains its key. What is stored belongs to this host and port
// alone, unlike a cookie. The login page takes it out, so an ended session is tried only once.
const kept = "console";
if (document.querySelector("[data-login]")) {
  const base = localStorage.getItem(kept);
  localStorage.removeItem(kept);
  if (base) location.replace(`${base}/now`);
} else {
  localStorage.setItem(kept, location.pathname.split("/").slice(0, 3).join("/"));
}

// The value of a chart that the pointer or the arrow keys have chosen: which chart of the page, which point.
let chosen = null;

const plots = () => [...document.querySelectorAll(".plot")];

const showChosen = () => {
  const plot = chosen && plots()[chosen.plot];
  if (!plot) return;
  const values = plot.dataset.values.split(" ");
  const seconds = (values.length - 1 - chosen.point) * Number(plot.dataset.every);
  const before = seconds < 120 ? `${seconds} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min`
    : `${Math.round(seconds / 360) / 10} h`;
  const value = values[chosen.point];
  plot.nextElementSibling.textContent =
    `${before} ago: ${value === "-" ? "no data" : value + plot.dataset.unit}`;
};

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot");
  if (!plot) return;
  const place = plot.getBoundingClientRect();
  const last = plot.dataset.values.split(" ").length - 1;
  const point = Math.round((event.clientX - place.left) / place.width * last);
  chosen = { plot: plots().indexOf(plot), point: Math.min(last, Math.max(0, point)) };
  showChosen();
});

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot");
  const last = plot && plot.dataset.values.split(" ").length - 1;
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -last / 10, PageDown: last / 10, Home: -last, End: last };
  if (!plot || !(event.key in steps)) return;
  event.preventDefault();
  const index = plots().indexOf(plot);
  const from = chosen && chosen.plot === index ? chosen.point : last;
  chosen = { plot: index, point: Math.min(last, Math.max(0, Math.round(from + steps[event.key]))) };
  showChosen();
});

// Puts `html` into `part`. Keeps scroll positions and focus.
const replace = (part, html) => {
  const regions = () => [...part.querySelectorAll("[tabindex]")];
  const before = regions().map((region) => ({
    left: region.scrollLeft,
    focused: region === document.activeElement,
  }));
  part.innerHTML = html;
  regions().forEach((region, index) => {
    if (!before[index]) return;
    region.scrollLeft = before[index].left;
    if (before[index].focused) region.focus({ preventScroll: true });
  });
  showChosen();
};

for (const part of document.querySelectorAll("[data-src]")) {
  const every = Number(part.dataset.refresh);
  const state = document.getElementById(part.dataset.state);
  const next = async () => {
    if (!document.hidden) {
      try {
        const signal = AbortSignal.timeout(10000);
        const answer = await fetch(part.dataset.src, { cache: "no-store", signal });
        // The session has ended: the page would show old figures only.
        if (answer.redirected) return location.assign(answer.url);
        if (!answer.ok) throw new Error("lost");
        replace(part, await answer.text());
        state.textContent = "";
      } catch {
        state.textContent = "Connection lost. Retrying. The figures below may be old.";
      }
    }
    setTimeout(next, every);
  };
  setTimeout(next, every);
}

for (const button of document.querySelectorAll("[data-copy]")) {
  const [text, said] = [document.getElementById(button.dataset.copy), document.getElementById("copied")];
  button.hidden = false;
  button.addEventListener("click", async () => {
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      // Without https there is no clipboard, but a selection can be copied.
      getSelection().selectAllChildren(text);
      isCopied = document.execCommand("copy");
    }
    said.textContent = isCopied ? "Copied." : "Your browser did not copy it. It is selected: copy it from the browser's menu.";
  });
}

// Ticks all rows at once, and counts those that are ticked.
for (const all of document.querySelectorAll("[data-all]")) {
  const boxes = [...document.querySelectorAll(`tbody [type=checkbox][name=${all.dataset.all}]`)];
  const said = document.querySelector(`[data-count=${all.dataset.all}]`);
  const count = () => {
    const ticked = boxes.filter((box) => box.checked).length;
    said.textContent = `${ticked} of ${boxes.length} ticked`;
    all.checked = ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
  };
  all.hidden = false;
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    count();
  });
  for (const box of boxes) box.addEventListener("change", count);
  count();
}

// A field that opens in place takes the focus.
for (const edit of document.querySelectorAll("details.edit")) {
  edit.addEventListener("toggle", () => edit.open && edit.querySelector("input:not([type=hidden])")?.focus());
}
