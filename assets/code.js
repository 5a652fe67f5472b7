"use strict";
// Asks for a code and shows it, or says in plain words why there is none.
const button = document.getElementById("issue");
const result = document.getElementById("result");

function show(text, kind) {
  result.textContent = text;
  result.className = kind;
}

function wait(seconds) {
  const minutes = Math.ceil(seconds / 60);
  return minutes > 90 ? `${Math.ceil(minutes / 60)} hours` : `${minutes} min`;
}

button.addEventListener("click", async () => {
  button.disabled = true;
  try {
    const answer = await fetch(`/api/v2/${button.dataset.product}/code/issue`, { method: "POST" });
    const body = await answer.json();
    if (answer.ok) {
      const until = new Date(body.data.expires_at).toLocaleTimeString();
      show(body.data.install_code, "code");
      result.insertAdjacentText("beforeend", `\ngood until ${until}`);
    } else {
      const again = Number(answer.headers.get("Retry-After"));
      const when = again > 0 ? ` Try again in ${wait(again)}.` : "";
      show(body.error.message + when, "error");
    }
  } catch {
    show("The server did not answer. Please try again.", "error");
  }
  button.disabled = false;
});
