// Sorts a table by the column whose heading is pressed: first the order that a reader would want, then the other one.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows];
      const known = rows.filter((row) => key(row) !== "");
      const numeric = known.every((row) => Number.isFinite(Number(key(row))));
      const now = heading.getAttribute("aria-sort");
      const first = heading.classList.contains("more") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = now === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      known.sort((a, b) => sign * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true })));
      body.append(...known, ...rows.filter((row) => key(row) === ""));
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? order : "none"));
    });
  });
}
