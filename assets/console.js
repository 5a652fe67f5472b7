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
