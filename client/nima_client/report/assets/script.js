"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const gallery = find("gallery");
  if (!gallery) return;
  const cards = Array.from(gallery.querySelectorAll(".card"));
  const bins = Array.from(document.querySelectorAll(".bin"));
  const controls = find("controls");
  const dialog = find("detail");
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const value = (card, key) => Number(card.dataset[key]);
  const orders = {
    "-mean": (a, b) => value(b, "mean") - value(a, "mean"),
    "mean": (a, b) => value(a, "mean") - value(b, "mean"),
    "-std": (a, b) => value(b, "std") - value(a, "std"),
    "std": (a, b) => value(a, "std") - value(b, "std"),
    "name": (a, b) => collator.compare(a.dataset.name, b.dataset.name),
  };
  // Names from macOS are decomposed; people type composed letters.
  const comparable = (text) => text.normalize().toLocaleLowerCase();
  let shown = cards.slice();
  let current = null;

  const number = (id, fallback) => {
    const text = find(id).value;
    return text === "" || Number.isNaN(Number(text)) ? fallback : Number(text);
  };

  function update() {
    const low = number("low", 1), high = number("high", 10);
    const wanted = comparable(find("search").value.trim());
    const order = orders[find("sort").value];
    shown = cards.filter((card) => {
      const name = comparable(`${card.dataset.folder}/${card.dataset.name}`);
      const fits = value(card, "mean") >= low && value(card, "mean") <= high && name.includes(wanted);
      card.hidden = card.parentElement.hidden = !fits;
      return fits;
    });
    shown.sort((a, b) => order(a, b) || value(a, "rank") - value(b, "rank"));
    gallery.append(...shown.map((card) => card.parentElement));
    for (const bin of bins) {
      bin.classList.toggle("out", Number(bin.dataset.high) <= low || Number(bin.dataset.low) > high);
    }
    find("shown").textContent = `${shown.length} shown`;
    find("nothing").hidden = shown.length > 0;
  }

  function cell(row, text) {
    const td = document.createElement("td");
    td.textContent = text;
    row.append(td);
    return td;
  }

  function leave(control) {
    // A control that goes loses the focus to the page behind, and with it the arrow keys.
    if (document.activeElement === control) find("detail-name").focus();
  }

  function disable(button, ends) {
    if (ends) leave(button);
    button.disabled = ends;
  }

  function link(card) {
    const address = card.parentElement.querySelector(".open")?.getAttribute("href");
    const open = find("detail-open");
    if (!address) leave(open);
    open.hidden = !address;
    for (const anchor of [open, find("detail-picture")]) {
      if (address) anchor.setAttribute("href", address); else anchor.removeAttribute("href");
    }
  }

  function show(card) {
    current = card;
    const image = card.querySelector("img");
    const large = find("detail-image");
    if (image) { large.src = image.src; } else { large.removeAttribute("src"); }
    large.hidden = !image;
    find("detail-gone").hidden = Boolean(image);
    find("detail-picture").classList.toggle("empty", !image);
    large.alt = card.dataset.name;
    find("detail-name").textContent = card.dataset.name;
    find("detail-folder").textContent = card.dataset.folder;
    // As the card says it: toFixed rounds a half up, Python to the even digit.
    const [mean, std] = card.querySelector(".score").textContent.split("±");
    find("detail-mean").textContent = mean.trim();
    find("detail-std").textContent = std.trim();
    const percentile = card.dataset.percentile;
    find("detail-percentile").textContent =
      percentile ? `scores higher than ${percentile} % of the reference photos` : "";
    const body = find("detail-ratings");
    body.replaceChildren();
    const ratings = card.dataset.ratings.split(",").map(Number);
    const peak = Math.max(...ratings);
    ratings.forEach((share, index) => {
      const row = document.createElement("tr");
      cell(row, String(index + 1));
      cell(row, `${(100 * share).toFixed(1)} %`);
      const meter = document.createElement("meter");
      meter.max = peak || 1;
      meter.value = share;
      const bar = cell(row, "");
      bar.append(meter);
      // Its share of the highest bar would be read out as if it were that of the ratings.
      bar.setAttribute("aria-hidden", "true");
      body.append(row);
    });
    const at = shown.indexOf(card);
    disable(find("previous"), at <= 0);
    disable(find("next"), at < 0 || at >= shown.length - 1);
    link(card);
    if (!dialog.open) dialog.showModal();
  }

  function step(by) {
    const next = shown[shown.indexOf(current) + by];
    if (next) show(next);
  }

  function columns() {
    const top = shown[0].parentElement.offsetTop;
    const next = shown.findIndex((card) => card.parentElement.offsetTop > top);
    return next < 1 ? shown.length : next;
  }

  gallery.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) show(card);
  });
  gallery.addEventListener("keydown", (event) => {
    const at = shown.findIndex((card) => card.parentElement.contains(document.activeElement));
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowRight: () => at + 1, ArrowLeft: () => at - 1,
      ArrowDown: () => at + columns(), ArrowUp: () => at - columns(),
      Home: () => 0, End: () => shown.length - 1,
    };
    const move = moves[event.key];
    if (!move) return;
    const target = shown[move()];
    if (target) {
      event.preventDefault();
      target.focus();
      target.scrollIntoView({ block: "nearest" });
    }
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { if (current) current.focus(); });
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  find("close").addEventListener("click", () => dialog.close());
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(update));
  find("again").addEventListener("click", () => controls.reset());
  for (const bin of bins) {
    bin.addEventListener("click", () => {
      find("low").value = bin.dataset.low;
      find("high").value = bin.dataset.high;
      update();
    });
  }
  // What the keyboard leads to must not lie below the controls, which stay at the top.
  new ResizeObserver(() => {
    const covered = getComputedStyle(controls).position === "sticky" ? controls.offsetHeight + 8 : 0;
    gallery.style.setProperty("--covered", `${covered}px`);
  }).observe(controls);
  controls.hidden = false;
  update();
})();
