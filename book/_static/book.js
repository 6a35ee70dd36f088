// Nothing may be cut or too small. A table that is wider than its place first takes the margin, then smaller type, then
// (not on a phone) puts intervals below their numbers, and at last becomes a list of its rows; a formula gets smaller
// type. What still scrolls is within reach of a keyboard, and book.css says so. Names such as CIFAR-10 and options do
// not break at a hyphen, nor numbers before their %.
addEventListener("DOMContentLoaded", () => {
  const SMALLEST = 0.55; // of the size of the text
  const LEGIBLE = 0.62; // of its pixels: the smallest type of a figure, 7 points at 150 dots an inch, has 9 then
  const NUMBER = /^[+\-−]?[\d.,]+( (%|s|min|h|GB))?(\s±\s[\d.,]+( %)?)?$/;
  // "± 1.2" is not divided, so a cell with two lines has the interval on the second
  const together = node =>
    node.nodeType === Node.TEXT_NODE ? (node.data = node.data.replace("± ", "±\u00a0")) : node.childNodes.forEach(together);
  const label = table => {
    const heads = []; // the lowest of several rows that says something
    for (const row of table.querySelectorAll("thead tr"))
      [...row.children].forEach((head, i) => (heads[i] = head.innerText.trim() || heads[i]));
    const rows = [...table.querySelectorAll("tbody tr")].map(row => [...row.children]);
    const cells = rows.flat().map(cell => cell.textContent.trim());
    if (cells.filter(text => NUMBER.test(text)).length > cells.length / 2) table.classList.add("measured");
    for (const row of rows) {
      const first = row.findIndex(cell => NUMBER.test(cell.textContent.trim()) || cell.textContent.trim() === "–");
      row.forEach((cell, i) => {
        if (heads[i]) cell.setAttribute("data-label", heads[i]);
        cell.classList.toggle("number", NUMBER.test(cell.textContent.trim()));
        cell.classList.toggle("none", cell.textContent.trim() === "–");
        cell.classList.toggle("key", i < first); // what a row is about
        if (cell.matches(".number")) together(cell);
      });
    }
  };
  const tables = [...document.querySelectorAll("main table:not(.indextable, .matrix)")];
  tables.forEach(label);
  // a span, for a hyphen that does not break would be another character, which nobody searches for
  const NAMES = "CIFAR-(?:10{1,2}N?|N)|ResNet-\\d+|EfficientNet-Lite\\d|DD-Ranking|DC-BENCH";
  const NAME = new RegExp(`\\b(?:${NAMES})|(?<!\\S)--[a-z][a-z-]+|\\d %`, "g");
  const texts = document.createTreeWalker(document.querySelector("main") ?? document.body, NodeFilter.SHOW_TEXT);
  const named = [];
  while (texts.nextNode()) if (/-| %/.test(texts.currentNode.data)) named.push(texts.currentNode);
  const ELSEWHERE = "pre, script, style, svg, select, mjx-container";
  for (const text of named.filter(text => !text.parentElement.closest(ELSEWHERE)))
    for (const { 0: name, index } of [...text.data.matchAll(NAME)].reverse()) {
      const whole = document.createElement("span");
      whole.className = "whole";
      text.splitText(index).splitText(name.length);
      text.nextSibling.replaceWith(whole);
      whole.textContent = name;
    }
  const phone = () => innerWidth <= 600; // where no table takes the margin
  const room = table => (phone() ? Math.min(table.clientWidth, table.closest(".bd-content, main").clientWidth) : table.clientWidth);
  // words in narrow columns, which nobody reads
  const words = table => phone() && !table.matches(".measured");
  const tall = table => words(table) && [...table.querySelectorAll("td")].some(cell => cell.clientHeight > 150);
  const fits = table => table.scrollWidth <= room(table) + 1;
  const fit = () => {
    for (const table of tables) {
      table.classList.remove("broad", "tight", "slim", "stacked");
      if (!table.offsetParent) continue;
      const steps = words(table) ? ["stacked"] : phone() ? ["tight", "stacked"] : ["broad", "tight", "slim", "stacked"];
      for (const step of steps) {
        if (fits(table) && !(step === "stacked" && tall(table))) break;
        if (step === "stacked") table.classList.remove("broad", "tight", "slim");
        if (step !== "broad" || !table.closest("details, .tad-explore")) table.classList.add(step);
      }
    }
    for (const formula of document.querySelectorAll("main mjx-container[display=true]")) {
      formula.dataset.size ??= formula.style.fontSize; // MathJax's own, which fits it to the text
      formula.style.fontSize = formula.dataset.size;
      const box = formula.closest("div.math") ?? formula.parentElement;
      const own = formula.querySelector("mjx-math, mjx-table, mjx-mtable") ?? formula;
      for (let size = parseFloat(formula.dataset.size) || 100, turn = 0; turn < 3; turn++) {
        const wide = Math.max(formula.scrollWidth, own.scrollWidth);
        const room = Math.min(formula.clientWidth, box.clientWidth);
        if (!room || wide <= room || size <= 100 * SMALLEST) break;
        formula.style.fontSize = `${(size = Math.max(100 * SMALLEST, (size * 0.98 * room) / wide))}%`;
      }
    }
    for (const image of document.querySelectorAll("main figure img")) {
      const [own, place] = [image.naturalWidth, image.closest("figure").clientWidth];
      image.style.width = phone() && own ? `${Math.max(Math.min(own, place), LEGIBLE * own)}px` : "";
    }
    for (const box of document.querySelectorAll("main :is(table, .math, pre, figure, .tad-explore .stage)")) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  // a table in the margin hides the contents of the page there while it is seen
  const side = document.querySelector(".bd-sidebar-secondary");
  const seen = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) isIntersecting ? seen.add(target) : seen.delete(target);
    side?.classList.toggle("covered", [...seen].some(table => table.classList.contains("broad")));
  });
  tables.forEach(table => watch.observe(table));
  fit();
  window.MathJax?.startup?.promise?.then(fit);
  addEventListener("load", () => window.MathJax?.startup?.promise?.then(fit));
  addEventListener("resize", fit);
  for (const box of document.querySelectorAll("main details")) box.addEventListener("toggle", fit);
  document.addEventListener("click", event => event.target.closest(".dropdown, .toggle, .toggle-button") && setTimeout(fit, 0));
});
