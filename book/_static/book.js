// Nothing may be cut or too small: a table that is wider than its place is set tighter, then shown row by row, a formula gets a smaller type. What
// still scrolls must be within reach of a keyboard.
addEventListener("DOMContentLoaded", () => {
  const SMALLEST = 0.55; // of the size of the text
  const LEGIBLE = 0.62; // of its pixels: the smallest type of a figure, 7 points at 150 dots an inch, has 9 then
  const label = table => {
    const heads = [...table.querySelectorAll("thead tr:last-child > *")].map(head => head.innerText.trim());
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.children].forEach((cell, i) => heads[i] && cell.setAttribute("data-label", heads[i]));
  };
  const fit = () => {
    for (const table of document.querySelectorAll("main table:not(.indextable)")) {
      table.classList.remove("stacked", "tight");
      if (!table.offsetParent || table.scrollWidth <= table.clientWidth + 1) continue;
      table.classList.add("tight");
      if (innerWidth > 600 && table.scrollWidth <= table.clientWidth + 1) continue;
      table.classList.remove("tight");
      label(table);
      table.classList.add("stacked");
    }
    for (const formula of document.querySelectorAll("main mjx-container[display=true]")) {
      formula.style.fontSize = "";
      const box = formula.closest("div.math") ?? formula.parentElement;
      const own = formula.querySelector("mjx-math, mjx-table, mjx-mtable") ?? formula;
      const [wide, room] = [Math.max(formula.scrollWidth, own.scrollWidth), Math.min(formula.clientWidth, box.clientWidth)];
      if (room && wide > room) formula.style.fontSize = `${Math.max(SMALLEST, (0.97 * room) / wide) * 100}%`;
    }
    for (const image of document.querySelectorAll("main figure img"))
      image.style.minWidth = innerWidth <= 600 ? `${Math.min(LEGIBLE * image.naturalWidth, 660)}px` : "";
    for (const box of document.querySelectorAll("main table, main .math, main pre, main figure")) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  fit();
  window.MathJax?.startup?.promise?.then(fit);
  addEventListener("load", () => window.MathJax?.startup?.promise?.then(fit));
  addEventListener("resize", fit);
  for (const box of document.querySelectorAll("main details")) box.addEventListener("toggle", fit);
  document.addEventListener("click", event => event.target.closest(".dropdown, .toggle, .toggle-button") && setTimeout(fit, 0));
});
