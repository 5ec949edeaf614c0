"use strict";
// Pictures that stand elsewhere on the page, or behind a fold, come when they are looked at.
{
  const album = JSON.parse(document.getElementById("album").textContent);
  for (const img of document.querySelectorAll("img[data-name]")) album[img.dataset.name] = img.src;
  const load = (img) => { img.src = album[img.dataset.picture]; };
  const near = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) if (isIntersecting) { load(target); near.unobserve(target); }
  }, { rootMargin: "600px" });
  const waiting = () => document.querySelectorAll("img[data-picture]:not([src])");
  for (const img of waiting()) near.observe(img);
  addEventListener("beforeprint", () => { for (const img of waiting()) load(img); });
}
for (const button of document.querySelectorAll("[data-copy]"))
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); button.textContent = "Selected"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
