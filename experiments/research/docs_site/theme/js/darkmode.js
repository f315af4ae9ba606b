/* The colours of the system, in place of the theme's script, which needs a highlighter that is not here. */
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const set = () => document.documentElement.setAttribute("data-bs-theme", dark.matches ? "dark" : "light");
  dark.addEventListener("change", set);
  set();
})();
