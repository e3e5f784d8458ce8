"use strict";
// Filters the rows of all environment tables by name, keeps long tables short until asked for all, reads out cells of
// heat maps that are tapped or clicked, and says where a table has more columns than fit.
{
  const form = document.querySelector("form.search");
  const input = document.querySelector("#search");
  const tables = [...document.querySelectorAll("table[data-rows]")].map((table) => {
    const box = table.closest(".box");
    const note = box.nextElementSibling;
    return {
      box,
      rows: [...table.tBodies[0].rows].map((row) => [row, row.cells[0].textContent.toLowerCase()]),
      note,
      count: note.querySelector("[data-count]"),
      button: note.querySelector("button"),
      shown: Number(table.dataset.rows),
      all: false,
    };
  });

  const draw = () => {
    const wanted = input ? input.value.trim().toLowerCase() : "";
    for (const table of tables) {
      const limit = table.all ? Infinity : table.shown;
      table.box.classList.toggle("tall", table.all);
      let found = 0;
      for (const [row, name] of table.rows) {
        row.hidden = !name.includes(wanted) || ++found > limit;
      }
      const total = table.rows.length.toLocaleString("en");
      const first = found > limit ? `The first ${limit} of ` : "";
      table.count.textContent = wanted
        ? `${first}${found.toLocaleString("en")} of ${total} rows match “${input.value.trim()}”.`
        : first ? `${first}${total} rows.` : "";
      table.button.hidden = found <= limit;
      table.note.hidden = !table.count.textContent;
    }
  };

  // #search=name links to what was searched for.
  const follow = () => {
    const match = /^#search=(.*)$/.exec(location.hash);
    if (!match || !input) return;
    try {
      input.value = decodeURIComponent(match[1]);
    } catch {
      input.value = match[1];
    }
    draw();
    form.scrollIntoView();
  };

  for (const table of tables) {
    table.button.addEventListener("click", () => {
      table.all = true;
      draw();
    });
  }
  if (form) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    input.addEventListener("input", () => {
      for (const table of tables) table.all = false;
      draw();
      const wanted = input.value.trim();
      history.replaceState(null, "", wanted ? `#search=${encodeURIComponent(wanted)}` : "#");
    });
    addEventListener("hashchange", follow);
  }
  const readout = document.querySelector(".readout");
  const read = (cell) => {
    document.querySelector("td.read")?.classList.remove("read");
    readout.hidden = !cell;
    if (!cell) return;
    cell.classList.add("read");
    const latent = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].textContent;
    readout.textContent = `${cell.parentNode.cells[0].textContent}, ${latent}: ${cell.textContent} · ${cell.title}`;
  };
  addEventListener("click", (event) => {
    const cell = event.target.closest(".heat td");
    read(cell?.classList.contains("read") ? null : cell);
  });
  addEventListener("keydown", (event) => event.key === "Escape" && read(null));

  const boxes = [...document.querySelectorAll(".box")];
  const measure = (box) => box.classList.toggle("beyond", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  for (const box of boxes) {
    box.addEventListener("scroll", () => measure(box), { passive: true });
    new ResizeObserver(() => measure(box)).observe(box);
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  draw();
  follow();
}
