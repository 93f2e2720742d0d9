/* Another accuracy to rank by: each row knows its place in every order. */
const board = document.getElementById("board"), rankBy = document.getElementById("rank-by");
const rank = () => {
  const rows = [...board.tBodies[0].rows].map((row) => [JSON.parse(row.dataset.ranks)[rankBy.value], row]);
  rows.sort(([[a]], [[b]]) => a - b);
  for (const [[, number], row] of rows) {
    row.cells[0].textContent = number || "–";
    row.cells[0].dataset.value = number;
    board.tBodies[0].append(row);
  }
  document.getElementById("ranked-by").textContent = rankBy.value;
  for (const title of board.tHead.rows[0].cells) {
    title.removeAttribute("aria-sort");
    const chosen = title.dataset.measure === rankBy.value;
    for (const row of board.rows) row.cells[title.cellIndex].classList.toggle("chosen", chosen);
    const box = document.querySelector(`input.column[data-column="${title.cellIndex}"]`);
    if (chosen && box && !box.checked) box.click();
  }
};
rankBy.addEventListener("input", rank);
rank();

const reliable = document.getElementById("only-reliable");
reliable.addEventListener("change", () => board.classList.toggle("reliable", reliable.checked));
