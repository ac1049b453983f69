// What the page does: pictures of rows, the map's hover, selection, search and colours. Names are data, never markup.
"use strict";
window.mocokitReport = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const LISTED = 5000;
  let chosen = [];

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const image = (row) => {
    const found = data.thumbnails[row];
    if (!found) return element("span", "no thumbnail", "faint");
    const made = element("img");
    made.alt = data.names[row];
    made.onload = () => made.classList.toggle("small", made.naturalWidth < 40);
    made.src = "data:image/webp;base64," + found;
    return made;
  };

  const picture = (row, note) => {
    const made = element("figure");
    made.title = data.names[row];
    const name = data.names[row].split("/").pop();
    made.append(image(row), element("figcaption", note ? `${note} ${name}` : name));
    return made;
  };

  for (const strip of document.querySelectorAll("[data-rows]")) {
    const notes = JSON.parse(strip.dataset.notes || "[]");
    strip.append(...JSON.parse(strip.dataset.rows).map((row, place) => picture(row, notes[place])));
  }
  if (!byId("map")) return {};

  const model = (name) => Bokeh.documents.map((d) => d.get_model_by_name(name)).find(Boolean);
  const value = (colour, row) => (colour.codes[row] < 0 ? "not known" : colour.kinds[colour.codes[row]]);

  const describe = (row) => {
    const beside = byId("beside");
    const facts = data.colours.map((colour) => `${colour.name}: ${value(colour, row)}`).join(" · ");
    beside.replaceChildren(picture(row), element("h3", data.names[row]), element("p", facts, "faint"));
    const strip = element("div", undefined, "strip");
    strip.append(...data.neighbours[row].map((near) => picture(near)));
    beside.append(element("p", "nearest in feature space"), strip);
  };

  const hint = [...byId("beside").childNodes];
  const show = (rows) => { if (rows.length) describe(rows[0]); else byId("beside").replaceChildren(...hint); };

  const select = (rows) => {
    chosen = [...rows];
    show(chosen);
    const shown = chosen.slice(0, LISTED).map((row) => data.names[row]);
    byId("chosen").textContent = shown.join("\n");
    const more = chosen.length > LISTED ? `, the first ${LISTED} are listed` : "";
    byId("count").textContent = chosen.length ? `${chosen.length} selected${more}` : "";
    for (const id of ["copy", "save", "clear"]) byId(id).disabled = !chosen.length;
  };

  const choose = (rows) => { model("points").selected.indices = rows; };

  const search = (text) => {
    const wanted = text.trim().toLowerCase();
    const rows = [];
    if (wanted) data.names.forEach((name, row) => { if (name.toLowerCase().includes(wanted)) rows.push(row); });
    choose(rows);
    byId("found").textContent = wanted ? `${rows.length} found` : "";
    show(rows);  // also where the selection was empty before
  };

  const colour = (number) => {
    const { codes, kinds, palette } = data.colours[number];
    const points = model("points"), mapper = model("colours");
    mapper.setv({ palette, high: Math.max(1, kinds.length) - 0.5 });
    points.data = { ...points.data, c: Float32Array.from(codes) };
    byId("legend").replaceChildren(...kinds.map((kind, code) => {
      const button = element("button"), dot = element("span", undefined, "dot");
      dot.style.background = palette[code];
      const rows = [];
      codes.forEach((its, row) => { if (its === code) rows.push(row); });
      button.append(dot, `${kind} (${rows.length})`);
      button.onclick = () => choose(rows);
      return button;
    }));
  };

  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const csv = () => {
    const head = ["image", ...data.colours.map((c) => c.name)];
    const lines = chosen.map((row) => [data.names[row], ...data.colours.map((c) => value(c, row))]);
    return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
  };

  const save = () => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "selected.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const copy = async () => {
    const text = chosen.map((row) => data.names[row]).join("\n");
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a page from disk may not be allowed to
      const area = element("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };

  let waiting;
  byId("search").oninput = (event) => { clearTimeout(waiting); waiting = setTimeout(() => search(event.target.value), 150); };
  byId("colour").replaceChildren(...data.colours.map((c, number) => new Option(c.name, number)));
  byId("colour").onchange = (event) => colour(Number(event.target.value));
  byId("save").onclick = save;
  byId("copy").onclick = copy;
  byId("clear").onclick = () => choose([]);
  const start = () => (window.Bokeh && model("points") ? colour(0) : setTimeout(start, 50));
  start();
  return { hover: (rows) => { if (rows.length) describe(rows[0]); }, select, choose, search, colour, csv };
})();
