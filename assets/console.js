"use strict";
// Fetches the parts of a page that live again and again, while somebody looks at it.

// Puts `html` into `part`; what scrolls in it stays where it was scrolled to, and the focus too.
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
};

for (const part of document.querySelectorAll("[data-src]")) {
  const every = Number(part.dataset.refresh);
  const state = document.getElementById(part.dataset.state);
  const next = async () => {
    if (!document.hidden) {
      try {
        const signal = AbortSignal.timeout(10000);
        const answer = await fetch(part.dataset.src, { cache: "no-store", signal });
        // The session is over: what is shown would only grow old.
        if (answer.redirected) return location.assign(answer.url);
        if (!answer.ok) throw new Error("lost");
        replace(part, await answer.text());
        state.textContent = "";
      } catch {
        state.textContent = "Connection lost. Trying again.";
      }
    }
    setTimeout(next, every);
  };
  setTimeout(next, every);
}
