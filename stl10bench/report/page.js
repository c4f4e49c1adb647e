
// A click on a heading sorts its table by that column, lowest first; a second one reverses the order.
// What has no value stays last. A line and its details are one <tbody> and move together.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const down = head.getAttribute("aria-sort") === "ascending";
      const sign = down ? -1 : 1;
      const column = heads.indexOf(head);
      const keyed = [...table.tBodies].map((body) => {
        const text = body.rows[0].cells[column].dataset.value;
        return { body, text, number: text === undefined || text === "" ? NaN : Number(text) };
      });
      keyed.sort((a, b) => {
        if (a.text === undefined || b.text === undefined)
          return (a.text === undefined) - (b.text === undefined);
        if (!Number.isNaN(a.number) && !Number.isNaN(b.number)) return sign * (a.number - b.number);
        return sign * a.text.localeCompare(b.text, "en");
      });
      table.append(...keyed.map((row) => row.body));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  }
}
