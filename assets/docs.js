"use strict";
// Searches within the page: shows the articles that contain all words, and their lines of the contents.
const field = document.getElementById("search");
const said = document.getElementById("found");
const articles = [...document.querySelectorAll("main article")].map((article) => ({
  article,
  text: article.textContent.toLowerCase(),
  line: document.querySelector(`.contents a[href="#${article.querySelector("h3").id}"]`)?.closest("li"),
}));

const search = () => {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { article, text, line } of articles) {
    const isFound = words.every((word) => text.includes(word));
    count += isFound;
    article.hidden = !isFound;
    if (line) line.hidden = !isFound;
  }
  said.textContent = words.length ? `${count} of ${articles.length} entries` : "";
};

field.closest("p").hidden = false;
field.addEventListener("input", search);
// A link to an entry that the search hides shows all again.
addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (!target?.closest("article[hidden]")) return;
  field.value = "";
  search();
  target.scrollIntoView();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target === field) return;
  event.preventDefault();
  field.focus();
});
search();
