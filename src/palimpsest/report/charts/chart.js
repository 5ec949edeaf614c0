// Tells what the nearest mark of a chart says, in place of the browser's own slow tip.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");  // the table under the chart says the same
  document.body.append(tip);
  let lit = null;
  const hide = () => { tip.hidden = true; lit?.classList.remove("lit"); lit = null; };
  const gap = (box, x, y) => Math.hypot(
    Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom),
  ) + Math.hypot(box.left + box.width / 2 - x, box.top + box.height / 2 - y) / 1000;
  const show = (mark, told, x, y) => {
    if (mark !== lit) { hide(); lit = mark; mark.classList.add("lit"); tip.textContent = told; tip.hidden = false; }
    const own = tip.getBoundingClientRect(), room = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(12, Math.min(x - own.width / 2, room - own.width - 12))}px`;
    tip.style.top = `${y - own.height - 14 > 8 ? y - own.height - 14 : y + 20}px`;
  };
  for (const chart of document.querySelectorAll(".chart .plane > svg, .bars li > svg")) {
    const marks = [...chart.querySelectorAll("title")].map((title) => {
      const mark = title.parentElement, told = title.textContent;
      title.remove();
      return { mark, told };
    });
    const seek = ({ clientX: x, clientY: y }) => {
      const found = marks
        .map(({ mark, told }) => ({ mark, told, box: mark.getBoundingClientRect() }))
        .map((each) => ({ ...each, far: gap(each.box, x, y) }))
        .sort((a, b) => a.far - b.far)[0];
      if (!found || found.far > 32) return hide();
      const { box } = found, small = box.width < 60;
      show(found.mark, found.told, small ? box.left + box.width / 2 : x, box.top);
    };
    chart.addEventListener("pointermove", seek);
    chart.addEventListener("pointerdown", seek);
    chart.addEventListener("pointerleave", hide);
  }
  addEventListener("scroll", hide, { passive: true, capture: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
// A table that is wider than its place can be scrolled by keyboard.
{
  const watch = new ResizeObserver((seen) => {
    for (const { target } of seen)
      if (target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
  });
  for (const each of document.querySelectorAll(".scroll")) watch.observe(each);
}
