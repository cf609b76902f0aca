"use strict";
// Everything here is an extra: without it the page holds the same tables in their own order, and no dead buttons.

function button(text) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(...text);
  return made;
}

// Numbers before words. Ties keep the order of the page.
function compare(a, b) {
  const [x, y] = [a.dataset.key, b.dataset.key];
  if (x !== undefined && y !== undefined) return Number(x) - Number(y); // NaN of two infinities counts as a tie
  if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

function arranged(rows, column, direction) {
  if (direction === "none") return rows;
  const sign = direction === "ascending" ? 1 : -1;
  const missing = (row) => row.cells[column].dataset.key === "";
  const present = rows.filter((row) => !missing(row));
  present.sort((a, b) => sign * compare(a.cells[column], b.cells[column]));
  return [...present, ...rows.filter(missing)];
}

const next = { none: "ascending", ascending: "descending", descending: "none" };

for (const table of document.querySelectorAll("table")) {
  const bodies = [...table.tBodies].map((body) => [body, [...body.rows]]);
  const heads = [...table.tHead.rows[0].cells];
  if (!bodies.some(([, rows]) => rows.length > 1)) continue;
  heads.forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    const press = button(head.childNodes);
    press.addEventListener("click", () => {
      const direction = next[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
      bodies.forEach(([body, rows]) => body.append(...arranged(rows, column, direction)));
    });
    head.append(press);
  });
}

for (const block of document.querySelectorAll(".commands")) {
  const press = button(["Copy"]);
  press.addEventListener("click", async () => {
    const code = block.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      press.textContent = "Copied";
    } catch {
      press.textContent = "Selected"; // a browser that does not let files write to the clipboard
    }
  });
  block.prepend(press);
}
