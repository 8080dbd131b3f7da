// The browser side of slice_browser.py: shows pictures of planes, and sends the plane and voxel that are asked for.

function element(parent, tag, options = {}) {
  const made = Object.assign(document.createElement(tag), options);
  parent.append(made);
  return made;
}

// Texts that the user may take elsewhere: selectable, and copied by a button.
function copyable(parent, label, text) {
  const row = element(parent, "div", { className: "row" });
  element(row, "span", { className: "label", textContent: label });
  element(row, "code", { textContent: text });
  const button = element(row, "button", { type: "button", textContent: "copy", title: `Copy ${label}` });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // pages that are not secure have no clipboard
      const area = element(document.body, "textarea", { value: text });
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1000);
  });
}

function render({ model, el }) {
  const volume = model.get("volume");
  const root = element(el, "div", { className: "imagery-dask-browser" });
  const title = element(root, "div", { className: "title" });
  const stage = element(root, "div", { className: "stage" });
  const [wide, tall] = volume.size_nm;
  // The longer side has 600 pixels at most; a pixel is as many nm along both axes.
  stage.style.aspectRatio = `${wide} / ${tall}`;
  stage.style.width = `${Math.round(600 * Math.min(1, wide / tall))}px`;
  const layers = { image: element(stage, "img"), labels: element(stage, "img") };
  layers.labels.className = "labels";
  const marker = element(stage, "div", { className: "marker", hidden: true });
  const error = element(stage, "div", { className: "error", hidden: true });

  function slider(label, options) {
    const row = element(root, "label", { className: "row" });
    element(row, "span", { className: "label", textContent: label });
    const input = element(row, "input", { type: "range", ...options });
    return [input, element(row, "span", { className: "value" })];
  }
  const [plane, place] = slider(volume.axis, { min: 0, max: volume.planes - 1, step: 1 });
  const [opacity, share] = slider("opacity", { min: 0, max: 1, step: 0.05 });
  const readout = element(root, "div", { className: "readout" });

  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }
  plane.addEventListener("input", () => { place.textContent = `plane ${plane.value}`; set("index", Number(plane.value)); });
  opacity.addEventListener("input", () => set("opacity", Number(opacity.value)));
  stage.addEventListener("click", (event) => {
    const box = stage.getBoundingClientRect();
    const [columns, rows] = volume.voxels;
    model.send({
      column: Math.floor(((event.clientX - box.left) / box.width) * columns),
      row: Math.floor(((event.clientY - box.top) / box.height) * rows),
      index: model.get("frame").index,
    });
  });

  const urls = {};
  async function showFrame() {
    const frame = model.get("frame");
    const fresh = {};
    for (const name of Object.keys(layers)) {
      fresh[name] = frame[name] ? URL.createObjectURL(new Blob([frame[name]], { type: "image/png" })) : "";
    }
    // Both pictures are decoded before either is shown, so that colors are never over another plane.
    await Promise.all(Object.values(fresh).filter(Boolean).map((url) => {
      const picture = new Image();
      picture.src = url;
      return picture.decode().catch(() => {});
    }));
    if (model.get("frame") !== frame) {  // a later plane has come meanwhile
      Object.values(fresh).forEach((url) => URL.revokeObjectURL(url));
      return;
    }
    for (const [name, layer] of Object.entries(layers)) {
      layer.hidden = !fresh[name];
      if (fresh[name]) layer.src = fresh[name];
      if (urls[name]) URL.revokeObjectURL(urls[name]);
      urls[name] = fresh[name];
    }
    error.textContent = frame.error || "";
    error.hidden = !frame.error;
    title.textContent = frame.title;
    plane.value = frame.index;
    place.textContent = `plane ${frame.index} of ${volume.planes}`;
    root.dataset.index = frame.index;
    mark();
  }
  function showOpacity() {
    opacity.value = model.get("opacity");
    layers.labels.style.opacity = model.get("opacity");
    share.textContent = `${Math.round(100 * model.get("opacity"))}%`;
  }
  function mark() {
    const picked = model.get("picked");
    marker.hidden = picked.index === undefined || picked.index !== model.get("frame").index;
    marker.style.left = `${(100 * (picked.column + 0.5)) / volume.voxels[0]}%`;
    marker.style.top = `${(100 * (picked.row + 0.5)) / volume.voxels[1]}%`;
  }
  function showPicked() {
    const picked = model.get("picked");
    readout.replaceChildren();
    if (picked.index === undefined) {
      element(readout, "div", { className: "label", textContent: "Click for the id and the position." });
      return;
    }
    for (const [name, id] of Object.entries(picked.ids || {})) copyable(readout, name, id);
    copyable(readout, "voxel", picked.voxel.join(", "));
    copyable(readout, "nm", picked.nm.map((nm) => Math.round(nm * 100) / 100).join(", "));
    if (picked.error) element(readout, "div", { className: "error", textContent: picked.error });
    mark();
  }

  model.on("change:frame", showFrame);
  model.on("change:opacity", showOpacity);
  model.on("change:picked", showPicked);
  showFrame();
  showOpacity();
  showPicked();
  return () => Object.values(urls).forEach((url) => url && URL.revokeObjectURL(url));
}

export default { render };
