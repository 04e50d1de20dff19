"use strict";
(() => {
  const root = document.documentElement, tip = document.getElementById("tip");
  const all = (what, from = document) => [...from.querySelectorAll(what)];

  // Light or dark: the system's choice until someone presses the button.
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tooltips, by pointer and by keyboard; text only, never markup.
  const show = (target, x, y) => {
    tip.textContent = target.dataset.tip;
    tip.classList.add("on");
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18) + "px";
  };
  const hide = () => tip.classList.remove("on");
  document.addEventListener("pointermove", (e) => {
    const target = e.target.closest && e.target.closest("[data-tip]");
    target ? show(target, e.clientX, e.clientY) : hide();
  });
  document.addEventListener("focusin", (e) => {
    if (!e.target.dataset || !e.target.dataset.tip) return hide();
    const box = e.target.getBoundingClientRect();
    show(e.target, box.right, box.bottom);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });

  // Sorting: a button in every heading; numbers by data-v, text otherwise.
  all("table.sortable").forEach((table) => all("th", table).forEach((th, column) => {
    const button = th.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") !== "ascending";
      all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => { const c = row.cells[column]; return c.dataset.v === undefined ? c.textContent.trim() : Number(c.dataset.v); };
      const body = table.tBodies[0], rows = [...body.rows];
      rows.sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
      body.append(...rows);
    });
  }));

  // Filters: rows and points that carry the same attributes.
  const form = document.getElementById("filters");
  if (!form) return;
  const count = document.getElementById("count");
  const apply = () => {
    const words = form.elements.words.value.trim().toLowerCase();
    const profile = form.elements.profile.value, model = form.elements.model.value;
    const fits = (e) => (!profile || e.dataset.profile === profile) && (!model || e.dataset.model === model);
    let left = 0;
    all("#options tbody tr").forEach((row) => {
      const on = fits(row) && (!words || row.textContent.toLowerCase().includes(words));
      row.classList.toggle("off", !on);
      left += on;
    });
    all("svg .dot[data-profile]").forEach((dot) => dot.classList.toggle("off", !fits(dot)));
    count.textContent = left + " shown";
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (e) => e.preventDefault());
})();
