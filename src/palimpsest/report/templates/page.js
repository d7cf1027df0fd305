// What the page does beyond being read: theme, sortable tables, the sources of a span, tooltips of figures, contents, printing.
(function () {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));

  // Theme: the system's until the button says otherwise; remembered.
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { toggle.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours"); };
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("palimpsest-theme", root.dataset.theme); } catch (_) { /* not remembered, then */ }
    name();
  });
  system.addEventListener("change", name);
  name();

  // Tables: a click on a heading sorts by it, a second one the other way; what is missing stays last.
  const order = new Intl.Collator("en", { numeric: true });
  all("table.data").forEach((table) => {
    const body = table.tBodies[0];
    all("thead button", table).forEach((button) => {
      const head = button.closest("th");
      const numeric = head.classList.contains("number");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const up = numeric ? now === "descending" : now !== "ascending"; // figures begin with the greatest
        const sign = up ? 1 : -1;
        const key = (row) => row.cells[head.cellIndex].dataset.value;
        const rows = Array.from(body.rows).sort((a, b) => {
          const x = key(a), y = key(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (numeric ? Number(x) - Number(y) : order.compare(x, y));
        });
        all("th", table.tHead).forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...rows);
      });
    });
  });

  // Passages: the span that has the focus shows where it comes from.
  all(".passage").forEach((passage) => {
    const links = all("mark a", passage);
    const sources = all("details.source", passage);
    const mark = (index) => links.forEach((link) => link.parentNode.classList.toggle("current", link.dataset.spans.split(" ").includes(index)));
    const show = (index) => { mark(index); sources.forEach((source) => { source.open = source.dataset.span === index; }); };
    links.forEach((link) => {
      const index = link.dataset.spans.split(" ")[0];
      link.addEventListener("focus", () => show(index));
      link.addEventListener("click", (event) => { event.preventDefault(); show(index); });
    });
    sources.forEach((source) => source.firstElementChild.addEventListener("click", () => mark(source.dataset.span)));
  });

  // Figures: the marker nearest to the pointer, or walked to with the arrow keys, says its numbers.
  const tip = document.getElementById("tip");
  const spoken = document.getElementById("spoken");
  const clear = () => { tip.hidden = true; all(".marker-on").forEach((marker) => marker.classList.remove("marker-on")); };
  const point = (marker, figure, speak) => {
    clear();
    marker.classList.add("marker-on");
    tip.textContent = marker.getAttribute("aria-label");
    if (speak) spoken.textContent = tip.textContent;
    tip.hidden = false;
    const box = marker.getBoundingClientRect(), frame = figure.getBoundingClientRect();
    const middle = box.left + box.width / 2;
    const left = Math.min(Math.max(middle - tip.offsetWidth / 2, 8), root.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = left + scrollX + "px";
    tip.style.top = (above < Math.min(frame.top, 0) ? box.bottom + 8 : above) + scrollY + "px";
  };
  all(".canvas").forEach((figure) => {
    const markers = () => all("path[aria-label]", figure).filter((marker) => marker.getClientRects().length);
    let at = -1;
    figure.addEventListener("pointermove", (event) => {
      let best = null, least = 40;
      markers().forEach((marker) => {
        const box = marker.getBoundingClientRect();
        const far = Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
        if (far < least) { best = marker; least = far; }
      });
      if (best) point(best, figure, false); else clear();
    });
    figure.addEventListener("pointerleave", clear);
    figure.addEventListener("blur", () => { at = -1; clear(); });
    figure.addEventListener("keydown", (event) => {
      const list = markers(), last = list.length - 1;
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") clear();
      if (to === undefined || last < 0) return;
      event.preventDefault();
      at = Math.min(Math.max(to, 0), last);
      point(list[at], figure, true);
    });
  });

  // Contents: the section in view.
  const entries = new Map(all(".contents a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((changes) => {
    changes.filter((change) => change.isIntersecting).forEach((change) => {
      entries.forEach((link) => link.removeAttribute("aria-current"));
      const link = entries.get(change.target.id);
      if (link) link.setAttribute("aria-current", "true");
    });
  }, { rootMargin: "-15% 0px -70% 0px" });
  all("main section[id]").forEach((section) => seen.observe(section));

  // Data: the page carries its own copy, so that the link works when the page was sent alone.
  const link = document.getElementById("download");
  const card = new Blob([document.getElementById("audit").textContent], { type: "application/json" });
  link.addEventListener("click", () => {
    link.href = URL.createObjectURL(card);
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // Print: everything unfolded, and folded again afterwards.
  let folded = [];
  addEventListener("beforeprint", () => { folded = all("details:not([open])"); folded.forEach((one) => { one.open = true; }); });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
})();
