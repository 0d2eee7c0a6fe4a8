"use strict";
// Before/after: the range input over the two images moves the edge of the upper one.
for (const compare of document.querySelectorAll(".compare")) {
  const input = compare.querySelector("input");
  const move = () => compare.style.setProperty("--x", input.value + "%");
  input.addEventListener("input", move);
  move();
}
// Sortable tables: a cell sorts by its data-sort, else by its text; numbers before text, empty cells always last.
const key = (row, column) => {
  const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
  return text === "" ? null : isNaN(text) ? text.toLowerCase() : Number(text);
};
const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.ariaSort === "ascending" || (!head.ariaSort && head.classList.contains("number"));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map(row => [key(row, column), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * order(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
