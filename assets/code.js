"use strict";
// Requests a code, shows it while it is valid, and follows what the installer does with it.
const at = (id) => document.getElementById(id);
const form = at("ask");
const button = at("issue");
const result = at("result");
const page = form.action;
const api = `/api/v2/${form.dataset.product}/code/issue`;
let timer = 0;
let stream = null;
let hint = "";
// For how long an installed server is expected to check in, in milliseconds. Not all installers register it.
const EXPECTED = 600000;
let expected = 0;
// After a precheck in time the installation may continue when the code itself has expired.
let isCarried = false;

const say = (text) => { at("message").textContent = text; };

function news(text, isGood) {
  at("news").textContent = text;
  at("news").classList.toggle("good", Boolean(isGood));
}

// The waiting time and the time of day, for people.
function comeBack(seconds) {
  const time = new Date(Date.now() + seconds * 1000);
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const count = (n, unit) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  if (seconds < 90) return `in ${count(seconds, "second")}`;
  if (seconds < 5400) return `in ${count(Math.ceil(seconds / 60), "minute")}, at ${clock}`;
  return `in ${count(Math.ceil(seconds / 3600), "hour")}, at ${clock}`;
}

async function ask(mayRenew) {
  const answer = await fetch(api, { method: "POST" });
  const body = await answer.json();
  if (answer.ok) return body.data;
  const isLost = /^browser_session_/.test(body.error.code);
  if (isLost && mayRenew) {
    // The page sets a new session cookie.
    await fetch(page, { cache: "no-store" });
    return ask(false);
  }
  const again = Number(answer.headers.get("Retry-After"));
  // The limit that refused, such as `"issue_per_ip_hour";r=0;t=900`.
  const limit = (answer.headers.get("RateLimit") || "").split('"')[1];
  const words = answer.status === 429 && form.dataset[limit] || body.error.message;
  throw new Error(again > 0 ? `${words} You can try again ${comeBack(again)}.` : words);
}

// What is used or over looks it, and cannot be copied.
function setOver(isOver) {
  result.classList.toggle("over", isOver);
  for (const one of document.querySelectorAll("[data-copy]")) one.hidden = isOver;
}

function stopWatching() {
  clearTimeout(expected);
  expected = 0;
  if (stream) stream.close();
  stream = null;
}

function expire() {
  clearInterval(timer);
  setOver(true);
  if (isCarried) {
    hold("Expired for other servers. The server whose installer has checked the code can still use it.");
    return;
  }
  stopWatching();
  at("left").textContent = "Expired.";
  at("left").classList.remove("soon");
  news("This code has expired. Get a new one.");
  button.textContent = "Get a new code";
}

// Counts from the moment the answer arrived, because this machine's clock may be wrong.
function countDown(seconds) {
  clearInterval(timer);
  const end = performance.now() + seconds * 1000;
  const show = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    if (left <= 0) return expire();
    const minutes = Math.floor(left / 60);
    at("left").textContent = `Valid for ${minutes}:${String(left % 60).padStart(2, "0")}`;
    at("left").classList.toggle("soon", left <= 60);
    if (left === 60) news("One minute left.");
  };
  show();
  timer = setInterval(show, 250);
}

// Shows `text` in place of the countdown.
function hold(text) {
  clearInterval(timer);
  at("left").classList.remove("soon");
  at("left").textContent = text;
}

function steps(reached) {
  const order = ["issued", "prechecked", "activated", "confirmed", "registered", "checked_in"];
  const last = order.indexOf(reached);
  for (const step of at("steps").children) {
    step.classList.toggle("done", order.indexOf(step.dataset.step) <= last);
  }
}

function showState(update) {
  // Ignores another code of this browser. Without a hint, assumes that it is this one.
  if (update.hint && update.hint !== hint) return;
  if (update.hostname) at("hostname").textContent = update.hostname;
  if (update.state !== "expired") isCarried = update.state === "prechecked";
  const texts = {
    prechecked: ["The installer has checked the code. It is valid.", false],
    activated: [`${update.hostname} is using the code. The installation is running.`, false],
    confirmed: [`${update.hostname} is installed.`, true],
    registered: [`${update.hostname} is installed and registered. Its first check-in comes next.`, true],
    checked_in: [`${update.hostname} is installed and has checked in.`, true],
    released: ["The installation did not finish. The code is valid again.", false],
  };
  if (update.state === "expired") return expire();
  steps(update.state === "released" ? "issued" : update.state);
  setOver(!["issued", "prechecked", "released"].includes(update.state));
  if (texts[update.state]) news(...texts[update.state]);
  if (update.state === "activated") hold("In use.");
  if (update.state === "released") countDown(update.ttl_seconds);
  if (["confirmed", "registered", "checked_in"].includes(update.state)) {
    hold("Used.");
    // The next stream tells the state again, which does not prolong it.
    expected ||= setTimeout(stopWatching, EXPECTED);
  }
  if (update.state === "checked_in") stopWatching();
}

function watch() {
  stopWatching();
  if (!window.EventSource) return;
  at("progress").hidden = false;
  stream = new EventSource(`${page}/events`);
  stream.addEventListener("state", (event) => showState(JSON.parse(event.data)));
  stream.addEventListener("end", () => {
    stopWatching();
    news("This page no longer shows progress. The installation continues.");
  });
  stream.onerror = () => {
    if (stream && stream.readyState === EventSource.CLOSED) {
      stopWatching();
      at("progress").hidden = true;
      news("Progress cannot be shown right now. The installation is not affected.");
    }
  };
}

function show(issued, isAgain) {
  const code = issued.install_code;
  hint = `${code.slice(0, 11)}...${code.slice(-6)}`;
  isCarried = false;
  at("code").textContent = code;
  for (const id of ["command", "unattended"]) {
    at(id).textContent = at(id).dataset.command.replaceAll("{code}", code);
  }
  result.hidden = false;
  setOver(false);
  button.textContent = "Get another code";
  at("hostname").textContent = "the server";
  steps("issued");
  news("");
  if (issued.ttl_seconds > 0) countDown(issued.ttl_seconds);
  watch();
  if (!isAgain) at("copy").focus();
}

async function copy(id) {
  const text = at(id).textContent;
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https there is no clipboard, but a selection can be copied.
    getSelection().selectAllChildren(at(id));
    isCopied = document.execCommand("copy");
  }
  news(isCopied ? "Copied." : "Your browser did not copy the text. It is selected: copy it from the browser's menu.");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  say("");
  try {
    show(await ask(true));
  } catch (error) {
    const isOurs = error instanceof Error && !(error instanceof TypeError);
    say(isOurs && !(error instanceof SyntaxError) ? error.message
      : "The server did not answer. Please try again.");
  }
  button.disabled = false;
});

for (const one of document.querySelectorAll("[data-copy]")) {
  one.addEventListener("click", () => copy(one.dataset.copy));
}

document.addEventListener("keydown", (event) => {
  const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if (event.key === "c" && isPlain && !result.hidden && !result.classList.contains("over")) {
    copy("command");
  }
});

// The page was loaded again, and the server has written the code into it.
if ("again" in result.dataset) {
  show({ install_code: at("code").textContent, ttl_seconds: Number(result.dataset.seconds) }, true);
  setOver(!result.dataset.seconds);
}
