"use strict";
// Fetches the parts of a page that live again and again, while somebody looks at it.
for (const part of document.querySelectorAll("[data-src]")) {
  const every = Number(part.dataset.refresh);
  const state = document.getElementById(part.dataset.state);
  const next = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(part.dataset.src, { cache: "no-store" });
        if (answer.redirected || !answer.ok) throw new Error("lost");
        part.innerHTML = await answer.text();
        state.textContent = "";
      } catch {
        state.textContent = "Connection lost. Trying again.";
      }
    }
    setTimeout(next, every);
  };
  setTimeout(next, every);
}
