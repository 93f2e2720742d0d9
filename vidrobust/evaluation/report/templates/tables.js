"use strict";
/* Tables of the class "sortable": a click on a title sorts the rows, and a second one turns the order.
   Numbers begin with the largest, names and ranks with the first. A cell sorts by its data-value,
   otherwise by its text; cells without a value come last. */
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  titles.forEach((title, column) => {
    title.querySelector("button")?.addEventListener("click", () => {
      const numbers = title.classList.contains("n") && !title.classList.contains("rank");
      const sorted = title.getAttribute("aria-sort");
      const down = sorted ? sorted === "ascending" : numbers;
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.value ?? cell.textContent.trim();
        return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      rows.forEach(([, row]) => body.append(row));
    });
  });
}
/* Fields of the class "filter" hide the rows of the table data-table that do not contain their text. A
   field with data-column looks at that column alone, for the whole text. */
for (const field of document.querySelectorAll(".filter")) {
  field.addEventListener("input", () => {
    const fields = [...document.querySelectorAll(`.filter[data-table="${field.dataset.table}"]`)];
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows) {
      row.hidden = fields.some((each) => {
        const wanted = each.value.trim().toLowerCase();
        if (!wanted) return false;
        if (!("column" in each.dataset)) return !row.textContent.toLowerCase().includes(wanted);
        return row.cells[Number(each.dataset.column)].textContent.trim().toLowerCase() !== wanted;
      });
    }
  });
}
/* Boxes of the class "column" show and hide a column of the table data-table. */
for (const box of document.querySelectorAll("input.column")) {
  const show = () => {
    for (const row of document.getElementById(box.dataset.table).rows) {
      const cell = row.cells[Number(box.dataset.column)];
      if (cell) cell.hidden = !box.checked;
    }
  };
  box.addEventListener("change", show);
  show();
}
